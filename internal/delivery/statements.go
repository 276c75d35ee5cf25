package delivery

import (
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/event"
)

// statements is one transaction of the recorder, as columns.
//
// Attempts are facts and always stored. Everything else is stored only if this instance
// is still the owner. An heir may have taken over meanwhile, and dispatched again the
// deliveries that it did not find recorded. Whichever comes first, no delivery is lost:
//
//   - A delivery of a batch goes to retries. Its batch is locked first. The heir takes
//     the batch over before it reads retries. So either the heir finds the row, or it
//     had the batch first and the row is not stored.
//   - A batch is settled. It is deleted only if this instance still owns it, and
//     therefore has stored every row that the batch needed.
//   - A delivery that was taken up is done, or goes back. Its row changes only if this
//     instance still owns the row. Otherwise the heir has freed the row, and the
//     delivery is taken up again.
type statements struct {
	// owner is the number of this instance. Records under an older number belong
	// to an heir.
	owner    int64
	attempts attemptRows
	insert   retryRows // new rows of retries
	update   retryRows // rows that were taken up and go back
	remove   keyRows   // rows that were taken up and are done
	settled  []int64
	// earliest is when the first of these retries is due; zero for none.
	earliest time.Time
	// freed: the next row of some ordering key may be taken up.
	freed bool
	// health are the changes of the listeners' health, and notices the events that
	// report exhausted deliveries.
	health  healthRows
	notices notices
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

// maxError bounds the text of a stored error, in bytes.
const maxError = 300

func (a *attemptRows) add(rec *record) {
	a.keyRows.add(rec.job.id())
	a.numbers = append(a.numbers, int32(rec.attempt()))
	a.started = append(a.started, rec.startedAt)
	a.durations = append(a.durations, int32(min(rec.result.Duration.Microseconds(), 1<<31-1)))
	a.statuses = append(a.statuses, int32(rec.result.Status))
	a.delivered = append(a.delivered, rec.outcome.kind == delivered)
	text := ""
	if rec.result.Err != nil {
		// PostgreSQL accepts neither NUL nor invalid UTF-8 in a text.
		text = strings.ToValidUTF8(strings.ReplaceAll(rec.result.Err.Error(), "\x00", ""), "\uFFFD")
		if len(text) > maxError {
			text = strings.ToValidUTF8(text[:maxError], "")
		}
	}
	a.errors = append(a.errors, text)
	kept := rec.result.Response
	if rec.outcome.kind == delivered {
		kept = nil // nobody debugs a success
	}
	a.responses = append(a.responses, append([]byte{}, kept...))
}

type retryRows struct {
	keyRows
	states    []string
	attempts  []int32
	due       []time.Time
	orderKeys []string
	owners    []*int64 // nil for a row that any instance may take up
}

func (r *retryRows) add(rec *record, state string, owner *int64, now time.Time) {
	r.keyRows.add(rec.job.id())
	r.states = append(r.states, state)
	r.attempts = append(r.attempts, int32(rec.attempt()))
	due := rec.outcome.at
	if due.IsZero() {
		due = now
	}
	r.due = append(r.due, due)
	r.orderKeys = append(r.orderKeys, rec.job.orderKey)
	r.owners = append(r.owners, owner)
}

// ofBatches returns the rows of some batches.
func (r *retryRows) ofBatches(batches []int64) retryRows {
	wanted := make(map[int64]bool, len(batches))
	for _, id := range batches {
		wanted[id] = true
	}
	var out retryRows
	for i, id := range r.batches {
		if !wanted[id] {
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

func newStatements(recs []record, owner int64, now time.Time) *statements {
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
			s.update.add(rec, state, nil, now)
		case rec.inHand:
			s.insert.add(rec, state, &s.owner, now)
		default:
			s.insert.add(rec, state, nil, now)
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

// queue adds the statements of the transaction. The batches come last, and byIndex
// comes before the statements that need it.
func (s *statements) queue(b *pgx.Batch, insert retryRows, store Store) {
	queueAttempts(b, &s.attempts)
	if r := &insert; len(r.batches) > 0 {
		// An earlier try whose answer was lost may have stored the rows.
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
	s.notices.queue(b, store.Put)
	s.health.queue(b)
	if len(s.settled) > 0 {
		store.Settle(b, s.owner, s.settled)
	}
}

func queueAttempts(b *pgx.Batch, a *attemptRows) {
	if len(a.batches) > 0 {
		b.Queue(`INSERT INTO attempts (batch_id, ordinal, listener_id, attempt, started_at, duration_us, status, delivered, error, response)
			SELECT * FROM unnest($1::bigint[], $2::int[], $3::bigint[], $4::int[], $5::timestamptz[], $6::int[], $7::int[],
				$8::boolean[], $9::text[], $10::bytea[])`,
			a.batches, a.ordinals, a.listeners, a.numbers, a.started, a.durations, a.statuses, a.delivered, a.errors, a.responses)
	}
}

// These statements change rows that were taken up. They follow byIndex in a
// transaction, because a plan made while the table was empty would read all of it.
const (
	removeRows = `DELETE FROM retries t USING unnest($1::bigint[], $2::int[], $3::bigint[]) AS u (batch_id, ordinal, listener_id)
		WHERE t.batch_id = u.batch_id AND t.ordinal = u.ordinal AND t.listener_id = u.listener_id AND t.owner = $4`
	putBackRows = `UPDATE retries t SET state = u.state, attempt = u.attempt, due_at = u.due_at, owner = NULL, updated_at = now()
		FROM unnest($1::bigint[], $2::int[], $3::bigint[], $5::text[], $6::int[], $7::timestamptz[])
			AS u (batch_id, ordinal, listener_id, state, attempt, due_at)
		WHERE t.batch_id = u.batch_id AND t.ordinal = u.ordinal AND t.listener_id = u.listener_id AND t.owner = $4`
)
