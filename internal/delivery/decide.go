package delivery

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/event"
)

// maxRetryAfter is the longest pause that a callback may ask for.
const maxRetryAfter = 24 * time.Hour

// kind is the kind of an outcome.
type kind int

const (
	// delivered: the callback accepted it.
	delivered kind = iota
	// retryAt: it is tried again, at outcome.at.
	retryAt
	// exhausted: the schedule has ended.
	exhausted
	// expired: it is older than the listener's max_age.
	expired
	// disable: the callback wants no more deliveries (410), and the listener is
	// disabled.
	disable
	// unparsable: the event can't be converted to its model.
	unparsable
	// dropped: the listener was deleted.
	dropped
	kinds // the number of kinds
)

// String returns the name in metrics and logs.
func (k kind) String() string {
	return [...]string{"delivered", "retry", "exhausted", "expired", "gone", "unparsable", "dropped"}[k]
}

// state returns the state in the table retries, or "" if the outcome needs no row.
func (k kind) state() string {
	switch k {
	case retryAt:
		return statusPending
	case exhausted, disable:
		return statusExhausted
	case expired:
		return "expired"
	case unparsable:
		return "unparsable"
	default:
		return ""
	}
}

// outcome is the decision about a delivery.
type outcome struct {
	kind kind
	// at is when the next attempt is due.
	at time.Time
	// slow: the callback is overloaded, so its whole lane slows down.
	slow bool
	// notBefore is the time until which the callback asked for no requests; zero for
	// none.
	notBefore time.Time
	// reason is why the listener is disabled.
	reason string
}

// decision is the input of decide, besides the result of the attempt.
type decision struct {
	// attempt is the number of the attempt, from 1.
	attempt  int
	now      time.Time
	random   float64 // in [0,1)
	schedule Schedule
	// maxAge bounds the age of the event since receivedAt; 0 for no bound.
	receivedAt time.Time
	maxAge     time.Duration
	// asked: somebody asked for the delivery again, however old the event is.
	asked bool
}

// unattempted decides before the POST. If ok is true, no attempt is made: the listener
// was deleted (nil) or disabled, or the event is too old.
func unattempted(j *job, l *event.Listener, now time.Time) (o outcome, ok bool) {
	switch {
	case l == nil:
		return outcome{kind: dropped}, true
	case !l.Enabled:
		// The delivery waits in the database until the listener is enabled again.
		return outcome{kind: retryAt, at: now}, true
	case l.MaxAge > 0 && now.Sub(j.stored.ReceivedAt) > l.MaxAge && !j.asked:
		return outcome{kind: expired}, true
	default:
		return outcome{}, false
	}
}

// decide decides after the attempt. No other function knows what a response means for a
// delivery.
func decide(r callback.Result, d decision) outcome {
	if _, ok := errors.AsType[*event.ParseError](r.Err); ok {
		return outcome{kind: unparsable}
	}
	switch {
	case r.Err == nil && r.Status >= 200 && r.Status < 300:
		return outcome{kind: delivered}
	case r.Err == nil && r.Status == http.StatusGone:
		return outcome{kind: disable, reason: reasonGone}
	}
	var o outcome
	switch r.Status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		o.slow = true
		if after := retryAfter(r.RetryAfter, d.now); after > 0 {
			o.notBefore = d.now.Add(after)
		}
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		o.slow = true
	}
	wait, ok := d.schedule.wait(d.attempt, d.random)
	if !ok {
		o.kind = exhausted
		return o
	}
	o.kind, o.at = retryAt, d.now.Add(wait)
	if o.at.Before(o.notBefore) {
		o.at = o.notBefore
	}
	if d.maxAge > 0 && !d.asked && o.at.Sub(d.receivedAt) > d.maxAge {
		o.kind, o.at = expired, time.Time{}
	}
	return o
}

// retryAfter parses a Retry-After header (RFC 9110, section 10.2.3): seconds or a date.
// An invalid value and a date in the past count as absent.
func retryAfter(s string, now time.Time) time.Duration {
	s = strings.TrimSpace(s)
	if s == "" {
		return 0
	}
	var after time.Duration
	if n, err := strconv.ParseUint(s, 10, 63); err == nil {
		after = maxRetryAfter
		if n < uint64(maxRetryAfter/time.Second) {
			after = time.Duration(n) * time.Second
		}
	} else if at, err := http.ParseTime(s); err == nil {
		after = at.Sub(now)
	} else if isDigits(s) {
		after = maxRetryAfter // more seconds than fit into 63 bits
	}
	return max(0, min(after, maxRetryAfter))
}

func isDigits(s string) bool { return strings.Trim(s, "0123456789") == "" }
