package postgres

import (
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// dieWithParent has the kernel shut PostgreSQL down when we are killed.
func dieWithParent(cmd *exec.Cmd) { cmd.SysProcAttr.Pdeathsig = syscall.SIGINT }

// runsIn tells whether a process has its working directory in dir, as a
// PostgreSQL has in its cluster. A pid file may name a process that has only
// inherited the number.
func runsIn(pid int, dir string) bool {
	cwd, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/cwd")
	if err != nil {
		return false
	}
	a, errA := os.Stat(cwd)
	b, errB := os.Stat(dir)
	return errA == nil && errB == nil && os.SameFile(a, b)
}
