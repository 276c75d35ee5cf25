package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of /proc/PID/stat: USER_HZ is 100 on every architecture that
// Go runs on (proc(5)).
const tick = 10 * time.Millisecond

// process is one line of /proc/PID/stat.
type process struct {
	parent int
	name   string
	// self is the process's own processor time, reaped that of its ended children.
	self, reaped time.Duration
}

func readProcess(pid int) (p process, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return p, err
	}
	// The name is in parentheses and may contain any character.
	from, to := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if from < 0 || to < from {
		return p, fmt.Errorf("/proc/%d/stat can't be read: %q", pid, b)
	}
	p.name = string(b[from+1 : to])
	fields := strings.Fields(string(b[to+1:])) // fields[0] is field 3 of proc(5)
	if len(fields) < 15 {
		return p, fmt.Errorf("/proc/%d/stat can't be read: %q", pid, b)
	}
	var numbers [5]int64
	for i, at := range [...]int{1, 11, 12, 13, 14} { // ppid, utime, stime, cutime, cstime
		if numbers[i], err = strconv.ParseInt(fields[at], 10, 64); err != nil {
			return p, fmt.Errorf("/proc/%d/stat can't be read: %w", pid, err)
		}
	}
	p.parent = int(numbers[0])
	p.self = time.Duration(numbers[1]+numbers[2]) * tick
	p.reaped = time.Duration(numbers[3]+numbers[4]) * tick
	return p, nil
}

// readUsage returns the usage of the server and the bare loop, by their process
// ids, of this process, and of its child PostgreSQL with all its processes.
func readUsage(server, bare int) (u usage, err error) {
	files, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return u, err
	}
	all := make(map[int]process, len(files))
	for _, f := range files {
		pid, err := strconv.Atoi(filepath.Base(f))
		if err != nil {
			continue
		}
		if p, err := readProcess(pid); err == nil { // otherwise it has just ended
			all[pid] = p
		}
	}
	me := os.Getpid()
	u.server, u.bare, u.harness = all[server].self, all[bare].self, all[me].self
	for _, p := range all {
		if p.name == "postgres" && (p.parent == me || all[p.parent].name == "postgres" && all[p.parent].parent == me) {
			u.postgres += p.self + p.reaped
		}
	}
	return u, nil
}

// peakMemory returns the most memory that a process has ever used, in bytes.
func peakMemory(pid int) (int64, error) { return readStatus(pid, "VmHWM") }

// memory returns the memory that a process uses, in bytes.
func memory(pid int) (int64, error) { return readStatus(pid, "VmRSS") }

// readStatus returns a size in /proc/PID/status, in bytes.
func readStatus(pid int, field string) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read the memory: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("read the memory: no %s in /proc/%d/status", field, pid)
}
