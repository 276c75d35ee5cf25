//go:build !linux

package postgres

import (
	"os/exec"
	"strconv"
	"strings"
)

// dieWithParent does nothing: only Linux can do it. The next start takes over.
func dieWithParent(*exec.Cmd) {}

// runsIn reports whether a process is a PostgreSQL on this cluster. The pid in a pid
// file may belong to another process by now.
func runsIn(pid int, dir string) bool {
	out, err := exec.Command("ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(out), dir)
}
