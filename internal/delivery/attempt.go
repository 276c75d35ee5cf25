package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/event"
)

// attempt makes one POST and returns its record. decide.go has both decisions: whether
// there is a POST at all, and what its result means.
func (l *lane) attempt(j job, t *callback.Target, listener *event.Listener, bad error) record {
	now := l.d.now()
	rec := record{job: j}
	if o, ok := unattempted(&j, listener, now); ok {
		rec.outcome = o
		return rec
	}
	rec.attempted, rec.startedAt, rec.began = true, now, time.Now()
	span, parent := l.d.cfg.Traces.attempt(l.d.attempts, &rec)
	defer func() { endSpan(span, &rec, t) }()
	body, err := j.body(listener, l.d.cfg.Application())
	switch {
	case err != nil:
		// Recorded as an attempt, so that the reason is kept.
		rec.result = callback.Result{Err: fmt.Errorf("%s can't be parsed: %w", j.stored.Name, err)}
	case bad != nil:
		rec.result = callback.Result{Err: bad, Class: callback.ClassRefused}
	default:
		rec.result = l.d.send(l.d.attempts, t, listener, &rec, body, parent)
	}
	rec.outcome = decide(rec.result, decision{
		attempt: j.attempt + 1, now: l.d.now(), random: rand.Float64(), schedule: l.d.cfg.Schedule,
		receivedAt: j.stored.ReceivedAt, maxAge: listener.MaxAge, asked: j.asked,
	})
	l.observe(rec, listener)
	return rec
}

// send makes the POST of a record's attempt.
func (d *Delivery) send(ctx context.Context, t *callback.Target, l *event.Listener, rec *record, body []byte, parent string) callback.Result {
	e := &rec.job.stored.Event
	return d.client.Send(ctx, t, &callback.Request{
		ID: rec.job.id().String(), Name: deliveredName(l, e), Event: e, Body: body, Attempt: rec.attempt(), Traceparent: parent,
		Timeout: timeoutOf(e, d.cfg.AttemptTimeout),
	})
}

// interaction is the event whose deliveries are worthless after 3 s.
const interaction = "INTERACTION_CREATE"

// interactionTimeout bounds an attempt to deliver an interaction, because Discord waits
// only 3 s for the response after it sent the interaction.
const interactionTimeout = 2500 * time.Millisecond

// timeoutOf returns the timeout of an attempt to deliver an event.
func timeoutOf(e *event.Event, usual time.Duration) time.Duration {
	if e.Name == interaction {
		return min(usual, interactionTimeout)
	}
	return usual
}

// observe counts and logs an attempt.
func (l *lane) observe(rec record, listener *event.Listener) {
	if rec.outcome.kind != unparsable { // nothing was sent
		l.d.metrics.attemptTime.Observe(rec.result.Duration.Seconds())
		l.series.Load().countAttempt(&rec)
	}
	l.log(rec, listener)
}

// log writes one line per attempt: a failure at level warn, a success at debug.
func (l *lane) log(rec record, listener *event.Listener) {
	level := slog.LevelDebug
	if rec.outcome.kind != delivered {
		level = slog.LevelWarn
	}
	if !l.d.log.Enabled(l.d.attempts, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("outcome", rec.outcome.kind.String()),
		slog.String("event", listener.Event),
		slog.String("name", rec.job.stored.Name),
		slog.String("delivery", rec.job.id().String()),
		slog.String("host", hostOf(listener)),
		slog.Int("attempt", rec.attempt()),
		slog.Int("status", rec.result.Status),
		slog.Duration("took", rec.result.Duration),
	}
	if rec.result.Err != nil {
		attrs = append(attrs, slog.String("error", rec.result.Err.Error()))
	}
	if rec.outcome.kind == retryAt {
		attrs = append(attrs, slog.Time("next_attempt", rec.outcome.at))
	}
	l.d.log.LogAttrs(l.d.attempts, level, "attempt", attrs...)
}
