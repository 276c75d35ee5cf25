package postgres

import (
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// dieWithParent makes the kernel shut PostgreSQL down when we are killed.
func dieWithParent(cmd *exec.Cmd) { cmd.SysProcAttr.Pdeathsig = syscall.SIGINT }

// runsIn reports whether dir is the working directory of a process. PostgreSQL's is its
// cluster. The pid in a pid file may belong to another process by now.
func runsIn(pid int, dir string) bool {
	cwd, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/cwd")
	if err != nil {
		return false
	}
	a, errA := os.Stat(cwd)
	b, errB := os.Stat(dir)
	return errA == nil && errB == nil && os.SameFile(a, b)
}
