package main

import (
	"errors"
	"time"
)

// errNoUsage says that this system does not tell what other processes use:
// those figures are left out then.
var errNoUsage = errors.New("what processes use is read from /proc, which only Linux has")

// usage is the processor time that the parties have used, with what their
// children have that ended.
type usage struct{ server, postgres, harness, bare time.Duration }

func (u usage) minus(v usage) usage {
	return usage{u.server - v.server, u.postgres - v.postgres, u.harness - v.harness, u.bare - v.bare}
}
