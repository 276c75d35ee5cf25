package delivery

import (
	"strconv"
	"strings"
	"time"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/event"
)

// record is what became of a delivery: an attempt and its outcome, or the outcome alone
// if no attempt was made.
type record struct {
	job       job
	attempted bool
	startedAt time.Time
	result    callback.Result
	outcome   outcome
	// inHand: the delivery is still under way here, and only gets a row that says so.
	inHand bool
	// settle, in a record without a job, is a batch that has nothing to deliver.
	settle *batch
	// mark, in a record without a job, is closed when all records before it are
	// written.
	mark chan struct{}
}

// owner returns the number under which this instance has the delivery or batch.
func (r *record) owner() int64 {
	if r.settle != nil {
		return r.settle.owner
	}
	return r.job.owner
}

// attempt returns the number of the attempt that was made, or of the last one before.
func (r *record) attempt() int {
	if r.attempted {
		return r.job.attempt + 1
	}
	return r.job.attempt
}

// signal returns what the attempt shows of the callback.
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

// urgent reports whether somebody waits for the record to be written: a caller of flush
// or close, or the next delivery of an ordering key.
func (r *record) urgent() bool {
	if r.job.stored == nil {
		return r.settle == nil
	}
	return r.job.batch == nil && r.job.orderKey != ""
}

// failure returns why an attempt did not deliver: a kind, which is one of few, and a
// text.
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

// hostOf returns the part of a callback's URL that a log may show.
func hostOf(l *event.Listener) string {
	_, rest, _ := strings.Cut(l.URL, "://")
	host, _, _ := strings.Cut(rest, "/")
	return host
}

// spill returns the record that lets a delivery wait in retries, due now.
func spill(j job) record { return record{job: j, outcome: outcome{kind: retryAt, at: time.Now()}} }
