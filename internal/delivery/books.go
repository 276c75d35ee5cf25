package delivery

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/event"
)

// The state of a delivery is read from two tables: attempts, and retries for deliveries
// that are not delivered or will be made again.

// The states that the API shows, except for those that only kind.state returns.
const (
	statusPending   = "pending"
	statusDelivered = "delivered"
	statusExhausted = "exhausted"
)

// storedAttempt is a row of attempts.
type storedAttempt struct {
	id        ID
	number    int
	startedAt time.Time
	took      time.Duration
	status    int // 0 without a response
	delivered bool
	problem   string
	response  []byte
}

// storedRetry is a row of retries.
type storedRetry struct {
	id       ID
	state    string
	attempts int
	due      time.Time
}

// entry is everything that is stored about one delivery.
type entry struct {
	id      ID
	event   event.Stored
	waiting *storedRetry   // nil for none
	last    *storedAttempt // nil for none
}

// status returns the delivery's state. If its last attempt failed and it has no row in
// retries, it has lost its listener meanwhile.
func (e *entry) status() string {
	switch {
	case e.waiting != nil:
		return e.waiting.state
	case e.last == nil:
		return statusPending
	case e.last.delivered:
		return statusDelivered
	default:
		return statusExhausted
	}
}

// newest is a key that is newer than every delivery's.
var newest = event.Key{Batch: math.MaxInt64, Ordinal: math.MaxInt32}

// pageQueries returns the queries for the keys of a listener's ($1) deliveries with a
// status, or with any status if it is "". Each query returns at most $4 keys that are
// older than the key ($2, $3), newest first. The status is part of the text, because
// with a parameter the planner could not know which index to use.
func pageQueries(status string) (queries []string) {
	const order = ` AND (batch_id, ordinal) < ($2, $3) ORDER BY batch_id DESC, ordinal DESC LIMIT $4`
	if status == "" || status == statusDelivered {
		where := ``
		if status != "" {
			where = ` AND delivered AND NOT EXISTS (SELECT FROM retries r
				WHERE r.batch_id = a.batch_id AND r.ordinal = a.ordinal AND r.listener_id = a.listener_id)`
		}
		queries = append(queries, `SELECT DISTINCT batch_id, ordinal FROM attempts a WHERE listener_id = $1`+where+order)
	}
	if status != statusDelivered {
		where := ``
		if status != "" {
			where = ` AND state = '` + status + `'`
		}
		queries = append(queries, `SELECT batch_id, ordinal FROM retries WHERE listener_id = $1`+where+order)
	}
	return queries
}

// page lists a listener's deliveries that are older than before, newest first: those
// with a status, or all if it is "".
func (d *Delivery) page(ctx context.Context, listener int64, status string, before event.Key, limit int) ([]entry, error) {
	var keys []event.Key
	for _, q := range pageQueries(status) {
		rows, _ := d.pool.Query(ctx, q, listener, before.Batch, before.Ordinal, limit)
		some, err := pgx.CollectRows(rows, pgx.RowToStructByPos[event.Key])
		if err != nil {
			return nil, fmt.Errorf("list deliveries: %w", err)
		}
		keys = append(keys, some...)
	}
	slices.SortFunc(keys, func(a, b event.Key) int {
		return cmp.Or(cmp.Compare(b.Batch, a.Batch), cmp.Compare(b.Ordinal, a.Ordinal))
	})
	keys = slices.Compact(keys)
	return d.entries(ctx, listener, keys[:min(limit, len(keys))])
}

// entries reads everything that is stored about deliveries. If an event is past its
// retention, event is empty.
func (d *Delivery) entries(ctx context.Context, listener int64, keys []event.Key) ([]entry, error) {
	list := make([]entry, len(keys))
	at := make(map[event.Key]*entry, len(keys))
	batches, ordinals := make([]int64, len(keys)), make([]int32, len(keys))
	for i, k := range keys {
		list[i].id = ID{k, listener}
		at[k] = &list[i]
		batches[i], ordinals[i] = k.Batch, k.Ordinal
	}
	if len(keys) == 0 {
		return list, nil
	}
	events, err := d.store.Events(ctx, keys)
	if err != nil {
		return nil, err
	}
	for _, e := range events {
		at[e.Key].event = e
	}
	rows, _ := d.pool.Query(ctx, `SELECT batch_id, ordinal, state, attempt, due_at
		FROM retries JOIN unnest($2::bigint[], $3::int[]) AS u (batch_id, ordinal) USING (batch_id, ordinal) WHERE listener_id = $1`,
		listener, batches, ordinals)
	var w storedRetry
	if _, err := pgx.ForEachRow(rows, []any{&w.id.Key.Batch, &w.id.Key.Ordinal, &w.state, &w.attempts, &w.due}, func() error {
		row := w
		at[row.id.Key].waiting = &row
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read the waiting deliveries: %w", err)
	}
	made, err := d.attemptsOf(ctx, `SELECT DISTINCT ON (batch_id, ordinal) `+attemptColumns+`
		FROM attempts a JOIN unnest($2::bigint[], $3::int[]) AS u (batch_id, ordinal) USING (batch_id, ordinal) WHERE listener_id = $1
		ORDER BY batch_id DESC, ordinal DESC, started_at DESC`, listener, batches, ordinals)
	if err != nil {
		return nil, err
	}
	for i := range made {
		at[made[i].id.Key].last = &made[i]
	}
	return list, nil
}

const attemptColumns = `batch_id, ordinal, listener_id, attempt, started_at, duration_us, status, delivered, error, response`

// attemptsOf returns the attempts that a query selects.
func (d *Delivery) attemptsOf(ctx context.Context, query string, args ...any) ([]storedAttempt, error) {
	rows, _ := d.pool.Query(ctx, query, args...)
	made, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (a storedAttempt, err error) {
		var us int64
		err = row.Scan(&a.id.Key.Batch, &a.id.Key.Ordinal, &a.id.Listener, &a.number, &a.startedAt, &us, &a.status, &a.delivered,
			&a.problem, &a.response)
		a.took = time.Duration(us) * time.Microsecond
		return a, err
	})
	if err != nil {
		return nil, fmt.Errorf("read attempts: %w", err)
	}
	return made, nil
}

// find reads one delivery and its attempts, oldest first. ok reports whether the
// delivery exists.
func (d *Delivery) find(ctx context.Context, id ID) (e entry, made []storedAttempt, ok bool, err error) {
	list, err := d.entries(ctx, id.Listener, []event.Key{id.Key})
	if err != nil {
		return e, nil, false, err
	}
	e = list[0]
	if e.event.Name == "" || e.waiting == nil && e.last == nil && !slices.Contains(e.event.Listeners, id.Listener) {
		return e, nil, false, nil
	}
	made, err = d.attemptsOf(ctx, `SELECT `+attemptColumns+` FROM attempts
		WHERE listener_id = $1 AND batch_id = $2 AND ordinal = $3 ORDER BY started_at`, id.Listener, id.Key.Batch, id.Key.Ordinal)
	return e, made, true, err
}
