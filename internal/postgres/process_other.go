//go:build !linux

package postgres

import (
	"os/exec"
	"strconv"
	"strings"
)

// dieWithParent does nothing: only Linux can do it. The next start takes over.
func dieWithParent(*exec.Cmd) {}

// runsIn reports whether a process is a PostgreSQL on this cluster. A pid file may
// contain a pid that another process has now.
func runsIn(pid int, dir string) bool {
	out, err := exec.Command("ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(out), dir)
}
