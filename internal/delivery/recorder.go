package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/postgres"
)

const (
	// recordQueue bounds the records that wait for the recorder.
	recordQueue = 4096
	// recordAtOnce bounds the records of one transaction.
	recordAtOnce = 2048
	// recordEvery is the shortest time between the starts of two transactions, unless
	// somebody waits for a record. It is short because deliveries that a crash leaves
	// unrecorded are made again.
	recordEvery = 20 * time.Millisecond
)

// recorder writes outcomes, many per transaction. While one transaction runs, records
// collect for the next.
type recorder struct {
	d       *Delivery
	in      chan record
	stopped chan struct{}
	health  postgres.Health
}

func newRecorder(d *Delivery) *recorder {
	return &recorder{d: d, in: make(chan record, recordQueue), stopped: make(chan struct{})}
}

// put hands over a record. It waits while the queue is full.
func (r *recorder) put(ctx context.Context, rec record) error {
	select {
	case r.in <- rec:
		return nil
	default:
	}
	select {
	case r.in <- rec:
		return nil
	case <-r.stopped:
		return ErrStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// flush waits until all records that were put before are written.
func (r *recorder) flush(ctx context.Context) error {
	mark := make(chan struct{})
	if err := r.put(ctx, record{mark: mark}); err != nil {
		return err
	}
	select {
	case <-mark:
		return nil
	case <-r.stopped:
		return ErrStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// close lets run return once all records are written. No record may be put after close.
func (r *recorder) close() { r.in <- record{} }

// run writes records until close is called.
func (r *recorder) run(ctx context.Context) error {
	defer close(r.stopped)
	var recs []record
	var notBefore time.Time
	for {
		clear(recs) // otherwise their payloads stay in memory
		var err error
		if recs, err = r.gather(ctx, recs[:0], notBefore); err != nil {
			return err
		}
		notBefore = time.Now().Add(recordEvery)
		last := false
		var marks []chan struct{}
		kept := recs[:0]
		for _, rec := range recs {
			switch {
			case rec.mark != nil:
				marks = append(marks, rec.mark)
			case rec.job.stored == nil && rec.settle == nil:
				last = true
			default:
				kept = append(kept, rec)
			}
		}
		if err := r.write(ctx, kept); err != nil {
			return err
		}
		for _, mark := range marks {
			close(mark)
		}
		if last {
			return nil
		}
	}
}

// gather returns the records of the next transaction: all that wait, and at least one.
// A transaction costs as much as dozens of records, so gather collects them until
// notBefore, unless somebody waits for a record.
func (r *recorder) gather(ctx context.Context, recs []record, notBefore time.Time) ([]record, error) {
	var due <-chan time.Time
	if wait := time.Until(notBefore); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		due = timer.C
	}
	for len(recs) < recordAtOnce {
		if len(recs) > 0 && recs[len(recs)-1].urgent() {
			due = nil
		}
		if len(recs) > 0 && due == nil {
			select {
			case rec := <-r.in:
				recs = append(recs, rec)
				continue
			default:
				return recs, nil
			}
		}
		select {
		case rec := <-r.in:
			recs = append(recs, rec)
		case <-due:
			due = nil
		case <-ctx.Done():
			return recs, context.Cause(ctx)
		}
	}
	return recs, nil
}

// write stores records in one transaction, and repeats it until it succeeds or ctx
// ends.
func (r *recorder) write(ctx context.Context, recs []record) error {
	if len(recs) == 0 {
		return nil
	}
	s := newStatements(recs, r.d.instance.ID(), r.d.now())
	s.health = r.d.health.changes(streaks(recs))
	s.notices = r.notices(ctx, recs, s.owner)
	err := retry.Do(ctx, postgres.Backoff(), func(ctx context.Context) error {
		err := r.try(ctx, s)
		if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Code == "23514" {
			err = errors.Join(err, r.ensure(ctx, recs))
			if len(s.notices) > 0 {
				err = errors.Join(err, r.d.store.Ensure(ctx))
			}
		}
		r.health.Set(err)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			r.d.metrics.recordFailures.Inc()
			r.d.log.LogAttrs(ctx, slog.LevelWarn, "recording attempts failed, trying again",
				slog.Int("records", len(recs)), slog.Any("error", postgres.Explain(err)))
		}
		return retry.RetryableError(err)
	})
	if err != nil {
		return fmt.Errorf("record %d outcomes: %w", len(recs), err)
	}
	for i := range recs {
		r.count(&recs[i])
	}
	r.d.health.apply(s.health)
	if !s.earliest.IsZero() {
		r.d.due(s.earliest)
	}
	s.notices.trace(ctx, r.d.cfg.Traces, r.d.now())
	if s.freed || len(s.notices) > 0 {
		r.d.wake()
	}
	return nil
}

// ensure makes the partitions of the records' attempts. Some may be past the retention by
// now, if the database was away for long: they are dropped again later.
func (r *recorder) ensure(ctx context.Context, recs []record) error {
	var last time.Time
	for i := range recs {
		if at := recs[i].startedAt; recs[i].attempted && !at.Truncate(time.Hour).Equal(last) {
			last = at.Truncate(time.Hour)
			if err := r.d.parts.Ensure(ctx, at); err != nil {
				return err
			}
		}
	}
	return nil
}

// notices makes the events that report exhausted deliveries. It reports no exhausted
// delivery of such an event, because a failing callback would cause new ones forever.
func (r *recorder) notices(ctx context.Context, recs []record, owner int64) (all notices) {
	for i := range recs {
		rec := &recs[i]
		if rec.outcome.kind.state() != statusExhausted || rec.owner() != owner || rec.settle != nil || rec.job.stored.Name == eventExhausted {
			continue
		}
		l := r.d.listeners.Listener(rec.job.listener)
		if l == nil {
			continue
		}
		e, err := deliveryExhausted(rec, l, r.d.now())
		if err != nil {
			r.d.log.LogAttrs(ctx, slog.LevelError, "could not make an event", slog.String("event", eventExhausted), slog.Any("error", err))
			continue
		}
		all = append(all, r.d.notice(e, 0)...)
	}
	return all
}

func (r *recorder) count(rec *record) {
	switch {
	case rec.settle != nil, rec.outcome.kind == retryAt:
	default:
		r.d.lane(rec.job.listener).series.Load().deliveries[rec.outcome.kind].Inc()
	}
}

func (r *recorder) try(ctx context.Context, s *statements) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("the transaction took longer than 30 s"))
	defer cancel()
	var b pgx.Batch
	if len(s.insert.batches) == 0 {
		// Statements sent together are one transaction, in one round trip.
		s.queue(&b, s.insert, r.d.store)
		return r.d.pool.SendBatch(ctx, &b).Close()
	}
	return pgx.BeginFunc(ctx, r.d.pool, func(tx pgx.Tx) error {
		owned, err := r.d.store.LockOwned(ctx, tx, s.owner, s.insert.batches)
		if err != nil {
			return err
		}
		s.queue(&b, s.insert.ofBatches(owned), r.d.store)
		return tx.SendBatch(ctx, &b).Close()
	})
}
