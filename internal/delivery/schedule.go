package delivery

import (
	"fmt"
	"strings"
	"time"
)

// jitter is the share by which a wait is lengthened or shortened at random, so that
// deliveries that failed together are not retried together.
const jitter = 0.2

// Schedule lists the waits between the attempts of a delivery; the first wait follows
// the first attempt. If the attempt after the last wait fails, the delivery is
// exhausted.
type Schedule []time.Duration

// ParseSchedule parses waits separated by commas, such as "5s,5m,30m".
func ParseSchedule(s string) (Schedule, error) {
	var out Schedule
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		d, err := time.ParseDuration(part)
		if err != nil || d < 0 || d > 30*24*time.Hour {
			return nil, fmt.Errorf("%q is not a wait from 0s to 720h, such as 5m", part)
		}
		out = append(out, d)
	}
	return out, nil
}

// Total returns how long a delivery is tried, from its first attempt to its last.
func (s Schedule) Total() (d time.Duration) {
	for _, wait := range s {
		d += wait
	}
	return d
}

// wait returns the time to wait after an attempt (counted from 1). ok is false if no
// attempt follows. random is in [0,1).
func (s Schedule) wait(attempt int, random float64) (d time.Duration, ok bool) {
	if attempt > len(s) {
		return 0, false
	}
	return time.Duration(float64(s[attempt-1]) * (1 - jitter + 2*jitter*random)), true
}
