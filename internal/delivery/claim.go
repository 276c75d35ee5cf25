package delivery

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/event"
)

// claim makes this instance the owner of due rows, at most limit in all. It claims
// background rows only where other rows leave room. It claims only the oldest row of an
// ordering key, and none while an instance owns that row. After an error, the returned
// jobs may be claimed nevertheless, because all answers are read before the commit.
func (d *Delivery) claim(ctx context.Context, rooms []room, limit int) (jobs []job, keys []event.Key, err error) {
	owner, err := d.instance.Hold(ctx)
	if err != nil {
		return nil, nil, err
	}
	left := make(map[int64]int, len(rooms))
	for _, r := range rooms {
		left[r.listener] = r.all
	}
	err = pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, byIndex); err != nil {
			return err
		}
		for _, due := range []string{dueOfKeys, dueOf("NOT q.background"), dueOf("q.background")} {
			var ids []int64
			var counts []int32
			for _, r := range rooms {
				n := left[r.listener]
				if due == dueOf("q.background") {
					n = min(n, r.background)
				}
				if n > 0 {
					ids, counts = append(ids, r.listener), append(counts, int32(n))
				}
			}
			if len(ids) == 0 || limit == len(jobs) {
				continue
			}
			claimed, claimedKeys, err := claimSome(ctx, tx, owner, ids, counts, limit-len(jobs), due)
			if err != nil {
				return err
			}
			jobs, keys = append(jobs, claimed...), append(keys, claimedKeys...)
			for i := range claimed {
				left[claimed[i].listener]--
			}
		}
		if len(jobs) == 0 {
			return nil
		}
		return d.store.ProveAlive(ctx, tx, owner)
	})
	return jobs, keys, err
}

// claimSome claims the rows that a query selects, and returns their jobs and the keys of
// their events.
func claimSome(ctx context.Context, tx pgx.Tx, owner int64, ids []int64, counts []int32, limit int, due string) (jobs []job, keys []event.Key, err error) {
	rows, _ := tx.Query(ctx, claimOf(due), ids, counts, owner, limit)
	jobs, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (job, error) {
		var k event.Key
		j := job{owner: owner}
		err := row.Scan(&k.Batch, &k.Ordinal, &j.listener, &j.attempt, &j.orderKey, &j.asked, &j.background)
		keys = append(keys, k)
		return j, err
	})
	return jobs, keys, err
}

// claimOf returns the statement that claims the rows that a query selects.
func claimOf(due string) string {
	return `UPDATE retries SET owner = $3, updated_at = now() WHERE ctid = ANY (ARRAY(` + due + `))
		RETURNING batch_id, ordinal, listener_id, attempt, order_key, asked, background`
}

// Until the transaction ends, byIndex makes the planner use the indexes that are in the
// order of a claim. PostgreSQL may plan a statement while the table is empty, and keep
// the plan while the table fills within seconds. One such plan expected a single row
// per listener, and sorted all of a listener's rows for each of its ordering keys. JIT
// is off because a wrong estimate could make PostgreSQL compile a claim.
const byIndex = `SELECT set_config('enable_sort', 'off', true), set_config('enable_seqscan', 'off', true),
	set_config('enable_bitmapscan', 'off', true), set_config('jit', 'off', true)`

// Due rows are selected and claimed by their place (ctid). To join them by their keys,
// the planner would read the whole table, because it can't know how few they are. A
// locked row does not move.

// dueOf returns a query for the due rows of one kind that are not ordered. The kind is
// part of the text, because with a parameter the planner could not know which index to
// use.
func dueOf(kind string) string {
	return `SELECT r.ctid FROM unnest($1::bigint[], $2::int[]) AS l (id, room)
		CROSS JOIN LATERAL (
			SELECT q.ctid FROM retries q
			WHERE q.listener_id = l.id AND q.state = 'pending' AND ` + kind + ` AND q.due_at <= now() AND q.owner IS NULL
				AND q.order_key = ''
			ORDER BY q.due_at LIMIT l.room FOR UPDATE SKIP LOCKED
		) r LIMIT $4`
}

// dueOfKeys selects the oldest row of each ordering key, if it is due. It hops from key
// to key in the index, because a key that fails for hours may have a hundred thousand
// rows. It checks each row again once the row is locked, with conditions that no index
// can serve.
const dueOfKeys = `WITH RECURSIVE head AS (
			SELECT l.id, l.room, h.* FROM unnest($1::bigint[], $2::int[]) AS l (id, room)
			CROSS JOIN LATERAL (
				SELECT q.order_key, q.ctid AS place, q.background, q.due_at, q.owner FROM retries q
				WHERE q.listener_id = l.id AND q.state = 'pending' AND q.order_key <> ''
				ORDER BY q.order_key, q.batch_id, q.ordinal LIMIT 1
			) h
			UNION ALL
			SELECT p.id, p.room, h.* FROM head p
			CROSS JOIN LATERAL (
				SELECT q.order_key, q.ctid AS place, q.background, q.due_at, q.owner FROM retries q
				WHERE q.listener_id = p.id AND q.state = 'pending' AND q.order_key <> '' AND q.order_key > p.order_key
				ORDER BY q.order_key, q.batch_id, q.ordinal LIMIT 1
			) h
		), ready AS (
			SELECT place, room, row_number() OVER (PARTITION BY id ORDER BY background, due_at) AS nth
			FROM head WHERE due_at <= now() AND owner IS NULL
		)
		SELECT ctid FROM retries WHERE ctid = ANY (ARRAY(SELECT place FROM ready WHERE nth <= room))
			AND state || '' = 'pending' AND due_at <= now() AND owner IS NULL
		LIMIT $4 FOR UPDATE SKIP LOCKED`
