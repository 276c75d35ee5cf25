package main

import (
	"errors"
	"time"
)

// errNoUsage means that this system does not report the usage of other
// processes. The report then leaves those figures out.
var errNoUsage = errors.New("the usage of processes is read from /proc, which only Linux has")

// usage is the processor time of each party. The time of PostgreSQL includes its ended
// child processes.
type usage struct{ server, postgres, harness, bare time.Duration }

func (u usage) minus(v usage) usage {
	return usage{u.server - v.server, u.postgres - v.postgres, u.harness - v.harness, u.bare - v.bare}
}
