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
// heir touches the estate, and settles it in three steps:
//
//  1. An instance whose lease has run out gets an heir, by one update of its
//     row. With this update it is dead: it can't renew its lease. The same
//     transaction raises the epochs of its shards, so that its commits fail,
//     however late it wakes up.
//  2. The heir takes over the batches, some at a time, and gives them to the
//     deliverer. When the deliverer returns, each delivery is in a lane or in
//     retries. Then the heir frees the retries that the dead instance had taken up.
//  3. The heir frees the shards and deletes the dead instance's row. So for an
//     instance that claims one of these shards, every older delivery is made, is
//     in a row of retries, or needs no order.
//
// If an heir dies, its own heir also gets the estates that it was settling. A
// row's owner changes only from a dead instance to its one heir, and every such
// statement names the previous owner: a statement that began with an older view of
// the tables finds no row.

// recoverBatches is how many batches are taken over at a time. It limits the
// memory that they take.
const recoverBatches = 32

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
		j.adoptedBy, j.adopting = me, make(map[int64][]int64)
	}
	estates, err := j.inherit(ctx, me)
	if err != nil {
		return fmt.Errorf("look for dead instances: %w", err)
	}
	for _, dead := range estates {
		if err := j.settleEstate(ctx, me, dead); err != nil {
			return fmt.Errorf("take over from instance %d: %w", dead, err)
		}
	}
	return nil
}

// inherit makes this instance the heir of all dead instances that have none, and
// returns all instances whose heir it is.
func (j *Journal) inherit(ctx context.Context, me int64) (estates []int64, err error) {
	// An instance that was itself cut off inherits only from instances that have
	// left: the others may have been cut off with it.
	const lapsed = `heir IS NULL AND id <> $1 AND lease_until <= CASE WHEN $2 THEN now() ELSE 'epoch'::timestamptz END`
	steady := j.instance.lease.Load().steady(time.Now(), j.instance.ttl)
	found := false
	if err := j.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM instances WHERE heir = $1 OR `+lapsed+`)`, me, steady).Scan(&found); err != nil || !found {
		return nil, err
	}
	err = pgx.BeginFunc(ctx, j.pool, func(tx pgx.Tx) error {
		// A dead instance inherits nothing. An instance that is about to become this
		// one's heir waits for this lock, and then inherits the outcome.
		if err := lock(ctx, tx, `SELECT FROM instances WHERE id = $1 AND heir IS NULL FOR SHARE`, me); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `UPDATE instances SET heir = $1 WHERE `+lapsed+` RETURNING id`, me, steady)
		if err != nil {
			return err
		}
		dead, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return err
		}
		var b pgx.Batch
		b.Queue(`UPDATE instances SET heir = $1 WHERE heir = ANY($2)`, me, dead)
		b.Queue(`UPDATE shards SET epoch = epoch + 1, updated_at = now() WHERE owner = ANY($1)`, dead)
		b.Queue(`SELECT id FROM instances WHERE heir = $1 ORDER BY id`, me).Query(func(rows pgx.Rows) error {
			estates, err = pgx.CollectRows(rows, pgx.RowTo[int64])
			return err
		})
		return tx.SendBatch(ctx, &b).Close()
	})
	return estates, err
}

// settleEstate runs steps 2 and 3 for a dead instance.
func (j *Journal) settleEstate(ctx context.Context, me, dead int64) error {
	total := 0
	for {
		batches, err := j.adopt(ctx, me, dead)
		if err != nil {
			return err
		}
		if len(batches) == 0 {
			break
		}
		if err := j.deliverer.Recover(ctx, batches); err != nil {
			return fmt.Errorf("dispatch unsettled batches: %w", err)
		}
		delete(j.adopting, dead)
		total += len(batches)
	}
	if err := j.deliverer.Free(ctx, dead); err != nil {
		return err
	}
	err := pgx.BeginFunc(ctx, j.pool, func(tx pgx.Tx) error {
		if err := lock(ctx, tx, `DELETE FROM instances WHERE id = $1 AND heir = $2`, dead, me); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE shards SET owner = NULL, updated_at = now() WHERE owner = $1`, dead)
		return err
	})
	if err != nil {
		return fmt.Errorf("free its shards: %w", err)
	}
	j.log.LogAttrs(ctx, slog.LevelInfo, "took over from a dead instance", slog.Int64("dead", dead), slog.Int("batches", total))
	return nil
}

// adopt takes over some batches of a dead instance, oldest first. It returns the
// same batches again until the caller has dispatched them: neither a lost answer
// nor a failed read may leave a batch that nobody dispatches.
func (j *Journal) adopt(ctx context.Context, me, dead int64) ([]*event.Batch, error) {
	var ids []int64
	for len(ids) == 0 {
		if j.adopting[dead] == nil {
			next, err := j.ids(ctx, `SELECT id FROM batches WHERE owner = $1 ORDER BY id LIMIT $2`, dead, recoverBatches)
			if err != nil || len(next) == 0 {
				return nil, err
			}
			j.adopting[dead] = next
		}
		var err error
		if ids, err = j.inheritBatches(ctx, me, dead, j.adopting[dead]); err != nil {
			return nil, err
		}
		if len(ids) == 0 {
			delete(j.adopting, dead) // all of them are settled
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

// inheritBatches makes this instance the owner of those of the batches that the
// dead one owns, and returns them and those that it already owns.
func (j *Journal) inheritBatches(ctx context.Context, me, dead int64, batches []int64) (ids []int64, err error) {
	err = pgx.BeginFunc(ctx, j.pool, func(tx pgx.Tx) error {
		if err := lock(ctx, tx, `SELECT FROM instances WHERE id = $1 AND heir = $2 FOR SHARE`, dead, me); err != nil {
			return err
		}
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

// lock runs a statement that must find a row: if it finds none, another instance
// has become the heir.
func lock(ctx context.Context, tx pgx.Tx, query string, args ...any) error {
	tag, err := tx.Exec(ctx, query, args...)
	if err == nil && tag.RowsAffected() == 0 {
		err = errDisinherited
	}
	return err
}
