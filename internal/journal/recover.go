package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/event"
)

// A dead instance's estate is its batches, its retries and its shards. Only its
// heir touches the estate, and settles it in four steps:
//
//  1. An instance whose lease has run out gets an heir, by one update of its
//     row. With this update it is dead: it can't renew its lease. If its heir is
//     dead or gone too, another instance becomes the heir.
//  2. The heir ends the dead instance's connections, which may hold locks, and
//     raises the epochs of its shards, so that its commits fail, however late it
//     wakes up.
//  3. The heir takes over the batches, some at a time, and gives them to the
//     deliverer. When the deliverer returns, each delivery is in a lane or in
//     retries. Then the heir frees the retries that the dead instance had taken up.
//  4. The heir frees the shards and deletes the dead instance's row. So for an
//     instance that claims one of these shards, every older delivery is made, is
//     in a row of retries, or needs no order.
//
// A row gets this instance as its owner only in a transaction that ends with the
// proof that this instance is not dead (whileAlive). So whoever inherits from it has
// seen every such row.
//
// No step waits for a lock without a limit, and none holds a lock that a living
// instance needs to renew its lease. Recover repeats what it could not do.

// recoverBatches and recoverBytes are how many batches are taken over at a time, and how
// large their payloads are together; a larger one is taken over alone. They limit the memory
// that a takeover needs.
const (
	recoverBatches = 32
	recoverBytes   = 16 << 20
)

// recoverEvery is how often to look for dead instances.
const recoverEvery = time.Second

// errDisinherited ends the work of an heir that was itself declared dead.
var errDisinherited = errors.New("another instance has become the heir of this one")

// Recover settles the estates of dead instances: it takes over their batches,
// gives them to the deliverer, and frees their shards. Run repeats it, and
// Claim begins with it, so that older events are delivered before newer ones.
func (j *Journal) Recover(ctx context.Context) error {
	select {
	case j.recovering <- struct{}{}:
		defer func() { <-j.recovering }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	me, err := j.instance.Hold(ctx)
	if err != nil {
		return err
	}
	if j.adoptedBy != me {
		j.adoptedBy, j.estates = me, make(map[int64]*estate)
	}
	dead, err := j.inherit(ctx, me)
	if err != nil {
		return fmt.Errorf("look for dead instances: %w", err)
	}
	var problems []error
	for _, id := range dead {
		if j.estates[id] == nil {
			j.estates[id] = new(estate)
		}
		if err := j.settleEstate(ctx, me, id, j.estates[id]); err != nil {
			problems = append(problems, fmt.Errorf("take over from instance %d: %w", id, err))
			continue
		}
		delete(j.estates, id)
	}
	return errors.Join(problems...)
}

// estate is how far this instance has come with what a dead one left.
type estate struct {
	// fenced: the dead instance can't commit any more.
	fenced bool
	// adopted are batches that were taken over and are not dispatched yet.
	adopted []int64
	// batches is how many were dispatched.
	batches int
}

// inherit makes this instance the heir of all dead instances that have none, and
// returns all instances whose heir it is.
func (j *Journal) inherit(ctx context.Context, me int64) ([]int64, error) {
	// An instance that was itself cut off inherits only from instances that have
	// left: the others may have been cut off with it.
	l := j.instance.lease.Load()
	for {
		// A locked row is being renewed or inherited: the next round sees the
		// outcome. FOR UPDATE, because it excludes whileAlive and an ordinary
		// UPDATE would not.
		tag, err := j.pool.Exec(ctx, `WITH dead AS (
				SELECT id FROM instances i
				WHERE id <> $1 AND EXISTS (SELECT FROM instances WHERE id = $1 AND heir IS NULL)
					AND CASE WHEN heir IS NULL AND now() BETWEEN $2 AND $3
							-- Further ahead is one that was renewed before the clock was set back.
							THEN lease_until NOT BETWEEN now() AND now() + 2 * $4::interval
						WHEN heir IS NULL THEN lease_until = 'epoch'
						ELSE heir <> $1 AND NOT EXISTS (SELECT FROM instances h WHERE h.id = i.heir AND h.heir IS NULL) END
				FOR UPDATE SKIP LOCKED
			) UPDATE instances i SET heir = $1 FROM dead WHERE i.id = dead.id`, me, l.judgesSince, l.judgesUntil, j.instance.ttl)
		if err != nil {
			return nil, err
		}
		if tag.RowsAffected() == 0 {
			break
		} // otherwise those that these were heirs of are next
	}
	return j.ids(ctx, `SELECT id FROM instances WHERE heir = $1 ORDER BY id`, me)
}

// settleEstate runs steps 2 to 4 for a dead instance.
func (j *Journal) settleEstate(ctx context.Context, me, dead int64, e *estate) error {
	if !e.fenced {
		if err := j.fence(ctx, dead); err != nil {
			return err
		}
		e.fenced = true
	}
	for {
		batches, err := j.adopt(ctx, me, dead, e)
		if err != nil {
			return err
		}
		if len(batches) == 0 {
			break
		}
		if err := j.deliverer.Recover(ctx, batches); err != nil {
			return fmt.Errorf("dispatch unsettled batches: %w", err)
		}
		e.adopted = nil
		e.batches += len(batches)
	}
	if err := j.deliverer.Free(ctx, dead); err != nil {
		return err
	}
	err := j.whileAlive(ctx, me, func(tx pgx.Tx) error {
		var b pgx.Batch
		b.Queue(`UPDATE shards SET owner = NULL, updated_at = now() WHERE owner = $1`, dead)
		b.Queue(`DELETE FROM instances WHERE id = $1`, dead)
		return tx.SendBatch(ctx, &b).Close()
	})
	if err != nil {
		return fmt.Errorf("free its shards: %w", err)
	}
	j.log.LogAttrs(ctx, slog.LevelInfo, "took over from a dead instance", slog.Int64("dead", dead), slog.Int("batches", e.batches))
	return nil
}

// fence makes the commits of a dead instance fail. Those under way hold the rows of
// their shards, for as long as its connections last.
func (j *Journal) fence(ctx context.Context, dead int64) error {
	ended := 0
	err := j.pool.QueryRow(ctx, `SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid))
		FROM instances d JOIN pg_stat_activity a ON a.application_name = d.application_name AND a.datname = current_database()
		WHERE d.id = $1 AND d.application_name <> ''
			AND NOT EXISTS (SELECT FROM instances l WHERE l.application_name = d.application_name AND l.heir IS NULL)`, dead).Scan(&ended)
	switch {
	case ended > 0:
		j.log.LogAttrs(ctx, slog.LevelWarn, "ended the connections of a dead instance", slog.Int64("dead", dead), slog.Int("connections", ended))
	case err != nil && !j.cannotEnd && ctx.Err() == nil:
		j.cannotEnd = true
		j.log.LogAttrs(ctx, slog.LevelWarn, "could not end the connections of a dead instance: what they have locked stays locked until they end",
			slog.Int64("dead", dead), slog.Any("error", err))
	}
	var b pgx.Batch
	b.Queue(waitBriefly)
	b.Queue(`UPDATE shards SET epoch = epoch + 1, updated_at = now() WHERE owner = $1`, dead)
	if err := j.pool.SendBatch(ctx, &b).Close(); err != nil {
		return fmt.Errorf("raise the epochs of its shards: %w", err)
	}
	return nil
}

// waitBriefly bounds the waits for locks in a transaction of Recover. What a dead
// instance has locked is tried again a second later, and meanwhile the other estates and
// the claims go on.
const waitBriefly = `SELECT set_config('lock_timeout', '1s', true)`

// adopt takes over some batches of a dead instance, oldest first. It returns the
// same batches again until the caller has dispatched them: neither a lost answer
// nor a failed read may leave a batch that nobody dispatches.
func (j *Journal) adopt(ctx context.Context, me, dead int64, e *estate) ([]*event.Batch, error) {
	var ids []int64
	for len(ids) == 0 {
		if len(e.adopted) == 0 {
			next, err := j.ids(ctx, oldestBatches, dead, recoverBatches, recoverBytes)
			if err != nil || len(next) == 0 {
				return nil, err
			}
			e.adopted = next
		}
		var err error
		if ids, err = j.inheritBatches(ctx, me, dead, e.adopted); err != nil {
			return nil, err
		}
		if len(ids) == 0 {
			e.adopted = nil // all of them are settled
		}
	}
	stored, err := read(ctx, j.pool, `batch_id = ANY($1)`, ids)
	if err != nil {
		return nil, err
	}
	// A batch whose events are past their retention is empty: nothing is left to
	// deliver.
	batches := make([]*event.Batch, len(ids))
	for i, id := range ids {
		batches[i] = &event.Batch{ID: id, Owner: me}
		for len(stored) > 0 && stored[0].Key.Batch == id {
			batches[i].Events = append(batches[i].Events, stored[0])
			stored = stored[1:]
		}
	}
	return batches, nil
}

// oldestBatches returns the oldest batches of an owner, a number of them at most, and
// besides the first only those with which the payloads are not larger than a limit.
const oldestBatches = `SELECT id FROM (
		SELECT b.id, row_number() OVER oldest AS n, sum(size.bytes) OVER oldest AS total
		FROM (SELECT id FROM batches WHERE owner = $1 ORDER BY id LIMIT $2) b,
			LATERAL (SELECT coalesce(sum(octet_length(data)), 0) AS bytes FROM events WHERE batch_id = b.id) size
		WINDOW oldest AS (ORDER BY b.id)
	) AS b WHERE n = 1 OR total <= $3 ORDER BY id`

// inheritBatches makes this instance the owner of those of the batches that the
// dead one owns, and returns them and those that it already owns.
func (j *Journal) inheritBatches(ctx context.Context, me, dead int64, batches []int64) (ids []int64, err error) {
	err = j.whileAlive(ctx, me, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `UPDATE batches SET owner = $1 WHERE id = ANY($2) AND owner IN ($1, $3) RETURNING id`, me, batches, dead)
		if err != nil {
			return err
		}
		ids, err = pgx.CollectRows(rows, pgx.RowTo[int64])
		return err
	})
	slices.Sort(ids)
	return ids, err
}

func (j *Journal) ids(ctx context.Context, query string, args ...any) ([]int64, error) {
	rows, err := j.pool.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

// whileAlive runs a transaction that succeeds only if this instance has no heir. The
// proof comes last: what it locks is this instance's own row, on which nothing waits
// but an heir.
func (j *Journal) whileAlive(ctx context.Context, me int64, f func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, j.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, waitBriefly); err != nil {
			return err
		}
		if err := f(tx); err != nil {
			return err
		}
		return j.store.ProveAlive(ctx, tx, me)
	})
}
