package postgres

import (
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// dieWithParent makes the kernel shut PostgreSQL down when we are killed.
func dieWithParent(cmd *exec.Cmd) { cmd.SysProcAttr.Pdeathsig = syscall.SIGINT }

// runsIn reports whether dir is the working directory of a process, as a cluster is
// that of its PostgreSQL. A pid file may contain a pid that another process has now.
func runsIn(pid int, dir string) bool {
	cwd, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/cwd")
	if err != nil {
		return false
	}
	a, errA := os.Stat(cwd)
	b, errB := os.Stat(dir)
	return errA == nil && errB == nil && os.SameFile(a, b)
}
