package delivery

import (
	"strconv"
	"strings"
	"time"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/event"
)

// record is the outcome of a delivery, with the attempt if one was made.
type record struct {
	job       job
	attempted bool
	startedAt time.Time
	// began is when the attempt started, by this machine's clock. For what
	// must not depend on whether the database's clock was set: the pace, and durations.
	began   time.Time
	result  callback.Result
	outcome outcome
	// moved: the listener has another URL by now, about which the attempt says nothing.
	moved bool
	// inHand: the delivery is still under way here, and gets a row with this instance
	// as its owner.
	inHand bool
	// settle is a batch without deliveries. Its record has no job.
	settle *batch
	// mark is closed when all earlier records are written. Its record has no job.
	mark chan struct{}
}

// owner returns the number under which this instance owns the delivery or batch.
func (r *record) owner() int64 {
	if r.settle != nil {
		return r.settle.owner
	}
	return r.job.owner
}

// elsewhere notes that the listener has another URL than the attempt's. Unless the
// delivery was accepted or is too old, it is made there, at once: what the old URL asked
// for, even to be left alone, is not asked by the new one.
func (r *record) elsewhere(now time.Time) {
	r.moved = true
	switch r.outcome.kind {
	case retryAt, exhausted, disable:
		r.outcome = outcome{kind: retryAt, at: now}
	}
}

// attempt returns the number of the attempt, or of the previous one if none was made.
func (r *record) attempt() int {
	if r.attempted {
		return r.job.attempt + 1
	}
	return r.job.attempt
}

// signal classifies the attempt for the pace of the lane.
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

// failure returns why an attempt failed: a kind, of which there are few, and a text.
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

// hostOf returns the host of a callback's URL. Logs may show no other part of it.
func hostOf(l *event.Listener) string {
	_, rest, _ := strings.Cut(l.URL, "://")
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		return rest[:end]
	}
	return rest
}

// spill returns the record that moves a delivery to retries, due now.
func (d *Delivery) spill(j job) record {
	return record{job: j, outcome: outcome{kind: retryAt, at: d.now()}}
}
