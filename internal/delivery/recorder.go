package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres"
)

const (
	// recordQueue bounds what waits for the recorder.
	recordQueue = 4096
	// recordAtOnce bounds one transaction.
	recordAtOnce = 2048
	// recordEvery is how far apart transactions begin while there is much to
	// record. What a crash finds unrecorded is delivered again.
	recordEvery = 20 * time.Millisecond
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

// host is what a log may show of a callback's URL.
func (r *record) host(l *event.Listener) string {
	_, rest, _ := strings.Cut(l.URL, "://")
	host, _, _ := strings.Cut(rest, "/")
	return host
}

// recorder writes outcomes in batches: while one transaction runs, the next
// fills.
type recorder struct {
	d       *Delivery
	in      chan record
	stopped chan struct{}
	health  postgres.Health
}

func newRecorder(d *Delivery) *recorder {
	return &recorder{d: d, in: make(chan record, recordQueue), stopped: make(chan struct{})}
}

// put hands over a record. It waits while the recorder is behind.
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

// flush returns when all that was put before is written.
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

// close lets run return once all is written. Nothing may be put after it.
func (r *recorder) close() { r.in <- record{} }

// run writes until close was called.
func (r *recorder) run(ctx context.Context) error {
	defer close(r.stopped)
	var recs []record
	var notBefore time.Time
	for {
		clear(recs) // or their payloads would live on
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

// gather returns what the next transaction writes: at least one record, and all
// that waits. A transaction costs as much as dozens of records, so while there
// is much to record the next one begins no earlier than notBefore.
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

// urgent tells whether somebody waits for the record to be written: who flushes
// or closes, or the next delivery of an ordering key.
func (r *record) urgent() bool {
	if r.job.stored == nil {
		return r.settle == nil
	}
	return r.job.batch == nil && r.job.orderKey != ""
}

// write stores records in one transaction, trying until it succeeds or ctx
// ends.
func (r *recorder) write(ctx context.Context, recs []record) error {
	if len(recs) == 0 {
		return nil
	}
	s := newStatements(recs, r.d.instance.ID())
	s.health = r.d.health.changes(streaks(recs))
	s.own = r.own(ctx, recs, s.owner)
	err := retry.Do(ctx, postgres.Backoff(), func(ctx context.Context) error {
		err := r.try(ctx, s)
		if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Code == "23514" {
			err = errors.Join(err, r.d.parts.Ensure(ctx, recs[0].startedAt), r.d.parts.Maintain(ctx, time.Now()))
			if len(s.own) > 0 {
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
				slog.Int("records", len(recs)), slog.Any("error", err))
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
	s.own.trace(ctx, r.d.cfg.Traces)
	if s.freed || len(s.own) > 0 {
		r.d.wake()
	}
	return nil
}

// own makes the events that tell of exhausted deliveries. Those of that very
// event are not told of: a callback for it that fails would go round in circles.
func (r *recorder) own(ctx context.Context, recs []record, owner int64) (events own) {
	for i := range recs {
		rec := &recs[i]
		if rec.outcome.kind.state() != statusExhausted || rec.owner() != owner || rec.settle != nil || rec.job.stored.Name == eventExhausted {
			continue
		}
		l := r.d.listeners.Listener(rec.job.listener)
		if l == nil {
			continue
		}
		e, err := deliveryExhausted(rec, l, time.Now())
		if err != nil {
			r.d.log.LogAttrs(ctx, slog.LevelError, "could not make an event", slog.String("event", eventExhausted), slog.Any("error", err))
			continue
		}
		events = append(events, r.d.tell(e, 0)...)
	}
	return events
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
		// What is sent together is one transaction, in one round trip.
		s.queue(&b, s.insert, r.d.store)
		return r.d.pool.SendBatch(ctx, &b).Close()
	}
	return pgx.BeginFunc(ctx, r.d.pool, func(tx pgx.Tx) error {
		own, err := r.d.store.LockOwned(ctx, tx, s.owner, s.insert.batches)
		if err != nil {
			return err
		}
		s.queue(&b, s.insert.of(own), r.d.store)
		return tx.SendBatch(ctx, &b).Close()
	})
}

// statements is the columns of one transaction.
//
// Attempts are facts and stored always. All else is for the owner to say, since
// an heir may have taken over, and then has dispatched again what it did not
// find recorded. Whichever comes first, no delivery is lost:
//
//   - A batch's delivery goes to retries. Its batch is locked before, so that
//     the heir, who makes the batch its own before it looks at retries, either
//     finds the row, or had the batch first, and the row is not stored.
//   - A batch is settled. It is forgotten only as its owner's, and so only if
//     every row of it was stored by this owner or needed none.
//   - A delivery that was taken up is done, or goes back. Its row changes only
//     as the owner's. The heir frees it: it is taken up again.
type statements struct {
	// owner is the number of this instance; what it has under another one is
	// an heir's.
	owner    int64
	attempts attemptRows
	insert   retryRows // new in retries
	update   retryRows // taken up from retries, and going back
	remove   keyRows   // taken up from retries, and done
	settled  []int64
	// earliest is when the first of the new retries is due.
	earliest time.Time
	// freed: the next retry of some ordering key may go.
	freed bool
	// health is what changes of the listeners' health, and own the events that
	// tell of exhausted deliveries.
	health healthRows
	own    own
}

type keyRows struct {
	batches   []int64
	ordinals  []int32
	listeners []int64
}

func (k *keyRows) add(id ID) {
	k.batches = append(k.batches, id.Key.Batch)
	k.ordinals = append(k.ordinals, id.Key.Ordinal)
	k.listeners = append(k.listeners, id.Listener)
}

type attemptRows struct {
	keyRows
	numbers   []int32
	started   []time.Time
	durations []int32
	statuses  []int32
	delivered []bool
	errors    []string
	responses [][]byte
}

type retryRows struct {
	keyRows
	states    []string
	attempts  []int32
	due       []time.Time
	orderKeys []string
	owners    []*int64 // nil for a row that anybody may take up
}

func newStatements(recs []record, owner int64) *statements {
	s := &statements{owner: owner}
	for i := range recs {
		rec := &recs[i]
		if rec.owner() != owner {
			if rec.attempted {
				s.attempts.add(rec)
			}
			continue
		}
		if rec.settle != nil {
			s.settled = append(s.settled, rec.settle.id)
			continue
		}
		if rec.attempted {
			s.attempts.add(rec)
		}
		state := rec.outcome.kind.state()
		switch {
		case state == "" && rec.job.batch == nil:
			s.remove.add(rec.job.id())
		case state == "":
		case rec.job.batch == nil:
			s.update.add(rec, state, nil)
		case rec.inHand:
			s.insert.add(rec, state, &s.owner)
		default:
			s.insert.add(rec, state, nil)
		}
		if rec.job.orderKey != "" && rec.job.batch == nil && rec.outcome.kind != retryAt {
			s.freed = true
		}
		if rec.outcome.kind == retryAt && !rec.inHand && (s.earliest.IsZero() || rec.outcome.at.Before(s.earliest)) {
			s.earliest = rec.outcome.at
		}
		if b := rec.job.batch; b != nil {
			if b.left--; b.left == 0 {
				s.settled = append(s.settled, b.id)
			}
		}
	}
	return s
}

func (a *attemptRows) add(rec *record) {
	a.keyRows.add(rec.job.id())
	a.numbers = append(a.numbers, int32(rec.attempt()))
	a.started = append(a.started, rec.startedAt)
	a.durations = append(a.durations, int32(min(rec.result.Duration.Microseconds(), 1<<31-1)))
	a.statuses = append(a.statuses, int32(rec.result.Status))
	a.delivered = append(a.delivered, rec.outcome.kind == delivered)
	text := ""
	if rec.result.Err != nil {
		// PostgreSQL takes neither NUL nor broken UTF-8 in a text.
		text = strings.ToValidUTF8(strings.ReplaceAll(rec.result.Err.Error(), "\x00", ""), "\uFFFD")
	}
	a.errors = append(a.errors, text)
	kept := rec.result.Response
	if rec.outcome.kind == delivered {
		kept = nil // nobody debugs a success: don't pay for it
	}
	a.responses = append(a.responses, append([]byte{}, kept...))
}

func (r *retryRows) add(rec *record, state string, owner *int64) {
	r.keyRows.add(rec.job.id())
	r.states = append(r.states, state)
	r.attempts = append(r.attempts, int32(rec.attempt()))
	due := rec.outcome.at
	if due.IsZero() {
		due = time.Now()
	}
	r.due = append(r.due, due)
	r.orderKeys = append(r.orderKeys, rec.job.orderKey)
	r.owners = append(r.owners, owner)
}

// of returns the rows of some batches.
func (r *retryRows) of(batches []int64) retryRows {
	in := make(map[int64]bool, len(batches))
	for _, id := range batches {
		in[id] = true
	}
	var out retryRows
	for i, id := range r.batches {
		if !in[id] {
			continue
		}
		out.keyRows.add(ID{event.Key{Batch: id, Ordinal: r.ordinals[i]}, r.listeners[i]})
		out.states = append(out.states, r.states[i])
		out.attempts = append(out.attempts, r.attempts[i])
		out.due = append(out.due, r.due[i])
		out.orderKeys = append(out.orderKeys, r.orderKeys[i])
		out.owners = append(out.owners, r.owners[i])
	}
	return out
}

func queueAttempts(b *pgx.Batch, a *attemptRows) {
	if len(a.batches) > 0 {
		b.Queue(`INSERT INTO attempts (batch_id, ordinal, listener_id, attempt, started_at, duration_us, status, delivered, error, response)
			SELECT * FROM unnest($1::bigint[], $2::int[], $3::bigint[], $4::int[], $5::timestamptz[], $6::int[], $7::int[],
				$8::boolean[], $9::text[], $10::bytea[])`,
			a.batches, a.ordinals, a.listeners, a.numbers, a.started, a.durations, a.statuses, a.delivered, a.errors, a.responses)
	}
}

// What becomes of rows that were taken up. They follow byIndex in a transaction:
// a plan that was made when the table was empty would read all of it.
const (
	removeRows = `DELETE FROM retries t USING unnest($1::bigint[], $2::int[], $3::bigint[]) AS u (batch_id, ordinal, listener_id)
		WHERE t.batch_id = u.batch_id AND t.ordinal = u.ordinal AND t.listener_id = u.listener_id AND t.owner = $4`
	putBackRows = `UPDATE retries t SET state = u.state, attempt = u.attempt, due_at = u.due_at, owner = NULL, updated_at = now()
		FROM unnest($1::bigint[], $2::int[], $3::bigint[], $5::text[], $6::int[], $7::timestamptz[])
			AS u (batch_id, ordinal, listener_id, state, attempt, due_at)
		WHERE t.batch_id = u.batch_id AND t.ordinal = u.ordinal AND t.listener_id = u.listener_id AND t.owner = $4`
)

// queue adds the statements of the transaction. The order matters only in that
// the batches go last.
func (s *statements) queue(b *pgx.Batch, insert retryRows, store Store) {
	queueAttempts(b, &s.attempts)
	if r := &insert; len(r.batches) > 0 {
		// A try whose answer was lost may have stored them.
		b.Queue(`INSERT INTO retries (batch_id, ordinal, listener_id, state, attempt, due_at, order_key, owner)
			SELECT * FROM unnest($1::bigint[], $2::int[], $3::bigint[], $4::text[], $5::int[], $6::timestamptz[], $7::text[], $8::bigint[])
			ON CONFLICT (batch_id, ordinal, listener_id) DO NOTHING`,
			r.batches, r.ordinals, r.listeners, r.states, r.attempts, r.due, r.orderKeys, r.owners)
	}
	if len(s.update.batches)+len(s.remove.batches) > 0 {
		b.Queue(byIndex)
	}
	if r := &s.update; len(r.batches) > 0 {
		b.Queue(putBackRows, r.batches, r.ordinals, r.listeners, s.owner, r.states, r.attempts, r.due)
	}
	if k := &s.remove; len(k.batches) > 0 {
		b.Queue(removeRows, k.batches, k.ordinals, k.listeners, s.owner)
	}
	s.own.queue(b, store.Put)
	s.health.queue(b)
	if len(s.settled) > 0 {
		store.Settle(b, s.owner, s.settled)
	}
}
