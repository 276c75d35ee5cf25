package delivery

import (
	"strconv"
	"strings"
	"time"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/event"
)

// record is what became of a delivery: an attempt and its outcome, or only an
// outcome if none was made.
type record struct {
	job       job
	attempted bool
	startedAt time.Time
	result    callback.Result
	outcome   outcome
	// inHand: the delivery goes on, and only gets a row that says so.
	inHand bool
	// settle, without a job, is a batch that has nothing to deliver.
	settle *batch
	// mark, without a job, is closed when all before it is written.
	mark chan struct{}
}

// owner is the number under which this instance has what is recorded.
func (r *record) owner() int64 {
	if r.settle != nil {
		return r.settle.owner
	}
	return r.job.owner
}

// attempt is the number of the attempt that was made, or of the last one.
func (r *record) attempt() int {
	if r.attempted {
		return r.job.attempt + 1
	}
	return r.job.attempt
}

// signal is what an attempt says of the callback.
func (r *record) signal() signal {
	switch {
	case r.outcome.kind == delivered:
		return signalOK
	case r.outcome.slow:
		return signalBusy
	case r.result.Class == callback.ClassTimeout:
		return signalLate
	default:
		return signalFailed
	}
}

// urgent tells whether somebody waits for the record to be written: who flushes
// or closes, or the next delivery of an ordering key.
func (r *record) urgent() bool {
	if r.job.stored == nil {
		return r.settle == nil
	}
	return r.job.batch == nil && r.job.orderKey != ""
}

// failure is why an attempt did not deliver: its kind, one of few, and what
// there is to say besides.
func (r *record) failure() (kind, text string) {
	switch {
	case r.outcome.kind == unparsable:
		return unparsable.String(), r.result.Err.Error()
	case r.result.Err != nil:
		return r.result.Class.String(), r.result.Err.Error()
	default:
		return strconv.Itoa(r.result.Status), ""
	}
}

// host is what a log may show of a callback's URL.
func (r *record) host(l *event.Listener) string {
	_, rest, _ := strings.Cut(l.URL, "://")
	host, _, _ := strings.Cut(rest, "/")
	return host
}

// spill lets a delivery wait in retries; it is due.
func spill(j job) record { return record{job: j, outcome: outcome{kind: retryAt, at: time.Now()}} }
