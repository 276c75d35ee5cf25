package journal

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/event"
)

// Plan returns the plan of an application. The first call creates it, with count
// shards.
func (j *Journal) Plan(ctx context.Context, applicationID event.Snowflake, count int) (event.Plan, error) {
	p, err := j.readPlan(ctx, applicationID)
	if errors.Is(err, pgx.ErrNoRows) {
		err = pgx.BeginFunc(ctx, j.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `INSERT INTO shard_plans (application_id, current_count) VALUES ($1, $2)
				ON CONFLICT (application_id) DO NOTHING`, int64(applicationID), count); err != nil {
				return err
			}
			return addShards(ctx, tx, applicationID, count)
		})
		if err == nil {
			p, err = j.readPlan(ctx, applicationID)
		}
	}
	if err != nil {
		return event.Plan{}, fmt.Errorf("read the plan of the shards: %w", err)
	}
	return p, nil
}

// KnownApplication returns the application whose shards are in the database; 0 if
// there are none yet.
func KnownApplication(ctx context.Context, pool *pgxpool.Pool) (event.Snowflake, error) {
	var id int64
	err := pool.QueryRow(ctx, `SELECT application_id FROM shard_plans ORDER BY since DESC LIMIT 1`).Scan(&id)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("look for the application: %w", err)
	}
	return event.Snowflake(id), nil
}

func (j *Journal) readPlan(ctx context.Context, applicationID event.Snowflake) (p event.Plan, err error) {
	var overlap, held *time.Time
	err = j.pool.QueryRow(ctx, `SELECT version, current_count, next_count, previous_count, phase, now() - since, overlap_at,
			CASE WHEN held_at >= overlap_at THEN held_at END
		FROM shard_plans WHERE application_id = $1`, int64(applicationID)).
		Scan(&p.Version, &p.Current, &p.Next, &p.Previous, &p.Phase, &p.Age, &overlap, &held)
	if overlap != nil {
		p.OverlapAt = *overlap
	}
	if held != nil {
		p.HeldAt = *held
	}
	return p, err
}

// Replan replaces the plan from with the plan to. It returns false if another
// instance has changed the plan first.
func (j *Journal) Replan(ctx context.Context, applicationID event.Snowflake, from, to event.Plan) (bool, error) {
	done := false
	err := pgx.BeginFunc(ctx, j.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE shard_plans SET version = version + 1, current_count = $3, next_count = $4,
				previous_count = $5, phase = $6, since = now(),
				overlap_at = CASE WHEN $6 = 'holding' THEN now() ELSE overlap_at END,
				held_at = CASE WHEN $6 = 'overlapping' THEN now() ELSE held_at END
			WHERE application_id = $1 AND version = $2`,
			int64(applicationID), from.Version, to.Current, to.Next, to.Previous, to.Phase)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		done = true
		if to.Next == 0 || to.Next == from.Next {
			return nil
		}
		return addShards(ctx, tx, applicationID, to.Next)
	})
	if err != nil {
		return false, fmt.Errorf("change the plan of the shards: %w", err)
	}
	return done, nil
}

// addShards creates the rows of a set of shards. Rows from an earlier plan keep
// their epoch, so that their owner from that time stays fenced.
func addShards(ctx context.Context, tx pgx.Tx, applicationID event.Snowflake, count int) error {
	_, err := tx.Exec(ctx, `INSERT INTO shards (application_id, shard_count, shard_id)
		SELECT $1, $2::int, id FROM generate_series(0, $2::int - 1) AS id
		ON CONFLICT (application_id, shard_count, shard_id) DO UPDATE SET stage = ''`, int64(applicationID), count)
	return err
}

// Survey returns who owns the shards of r's set. It also tells the other instances
// which shards this one is willing to run: of willing's set the shards in willing, and
// of every other set all shards. The zero value means all shards of every set.
func (j *Journal) Survey(ctx context.Context, applicationID event.Snowflake, r, willing event.ShardRange) (event.Survey, error) {
	s := event.Survey{Self: j.instance.ID()}
	var b pgx.Batch
	b.Queue(`UPDATE instances SET application_id = $2, shard_first = $3, shard_last = $4, shard_count = $5, sharing = true
		WHERE id = $1 AND (application_id, shard_first, shard_last, shard_count, sharing) IS DISTINCT FROM ($2, $3, $4, $5, true)`,
		s.Self, int64(applicationID), willing.First, willing.Last, willing.Count)
	b.Queue(`WITH live AS (
			-- A lease that has lapsed takes nothing from anybody: only an heir does.
			SELECT * FROM instances WHERE heir IS NULL AND lease_until > 'epoch'
		), peer AS (
			SELECT id, CASE WHEN shard_count = $2 THEN shard_first ELSE 0 END AS first,
				CASE WHEN shard_count = $2 THEN shard_last ELSE $2 - 1 END AS last
			FROM live WHERE application_id = $1 AND sharing
		), shard AS (
			SELECT shard_id, stage, s.owner, l.id IS NULL AS free
			FROM shards s LEFT JOIN live l ON l.id = s.owner
			WHERE s.application_id = $1 AND s.shard_count = $2
				AND EXISTS (SELECT FROM peer WHERE shard_id BETWEEN first AND last)
		)
		SELECT (SELECT coalesce(array_agg(id ORDER BY id), '{}') FROM peer WHERE first = $3 AND last = $4),
			(SELECT coalesce(array_agg(shard_id ORDER BY shard_id), '{}') FROM shard WHERE owner = $5),
			(SELECT coalesce(array_agg(shard_id ORDER BY shard_id), '{}') FROM shard
				WHERE free AND stage <> 'ended' AND shard_id BETWEEN $3 AND $4),
			count(*), count(*) FILTER (WHERE stage IN ('ready', 'holding')), count(*) FILTER (WHERE stage = 'holding'),
			count(*) FILTER (WHERE stage = 'ended') FROM shard`,
		int64(applicationID), r.Count, r.First, r.Last, s.Self).
		QueryRow(func(row pgx.Row) error {
			return row.Scan(&s.Peers, &s.Owned, &s.Free, &s.Shards, &s.Ready, &s.Holding, &s.Ended)
		})
	if err := j.pool.SendBatch(ctx, &b).Close(); err != nil {
		return event.Survey{}, fmt.Errorf("survey the shards: %w", err)
	}
	return s, nil
}

// Withdraw tells the other instances that this one takes no more shards, so that
// they need not leave it a share while it drains.
func (j *Journal) Withdraw(ctx context.Context) error {
	if _, err := j.pool.Exec(ctx, `UPDATE instances SET sharing = false WHERE id = $1`, j.instance.ID()); err != nil {
		return fmt.Errorf("withdraw from sharing the shards: %w", err)
	}
	return nil
}

// Holders returns the live instances that own the shards of a set, by shard id,
// named for people.
func (j *Journal) Holders(ctx context.Context, applicationID event.Snowflake, count int) (map[int]event.Holder, error) {
	rows, err := j.pool.Query(ctx, `SELECT s.shard_id, i.hostname || '#' || i.id, s.seq FROM shards s JOIN instances i ON i.id = s.owner
		WHERE s.application_id = $1 AND s.shard_count = $2 AND i.lease_until > now()`, int64(applicationID), count)
	if err != nil {
		return nil, fmt.Errorf("list who has the shards: %w", err)
	}
	holders := make(map[int]event.Holder)
	var (
		id int
		h  event.Holder
	)
	if _, err := pgx.ForEachRow(rows, []any{&id, &h.Name, &h.Stored}, func() error {
		holders[id] = h
		return nil
	}); err != nil {
		return nil, fmt.Errorf("list who has the shards: %w", err)
	}
	return holders, nil
}

// deliveredPage is how many rows Delivered reads at once.
const deliveredPage = 10_000

// Delivered lists the wanted dispatches that a set of shards received at or after
// a time, in the order of their commits.
func (j *Journal) Delivered(ctx context.Context, count int, since time.Time) ([]event.Delivered, error) {
	var delivered []event.Delivered
	// A batch's number contains the time of its commit: this bound uses the index.
	after := event.Key{Batch: j.store.At(since.Add(-time.Minute)) - 1, Ordinal: math.MaxInt32}
	for {
		rows, err := j.pool.Query(ctx, `SELECT batch_id, ordinal, name, decode(md5(data), 'hex'), received_at FROM events
			WHERE (batch_id, ordinal) > ($1, $2) AND shard_count = $3 AND received_at >= $4 AND seq > 0
			ORDER BY batch_id, ordinal LIMIT $5`, after.Batch, after.Ordinal, count, since, deliveredPage)
		if err != nil {
			return nil, fmt.Errorf("read the events that the set of %d shards delivered: %w", count, err)
		}
		before := len(delivered)
		var (
			d   event.Delivered
			sum []byte
		)
		_, err = pgx.ForEachRow(rows, []any{&after.Batch, &after.Ordinal, &d.Name, &sum, &d.ReceivedAt}, func() error {
			copy(d.Sum[:], sum)
			delivered = append(delivered, d)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read the events that the set of %d shards delivered: %w", count, err)
		}
		if len(delivered)-before < deliveredPage {
			return delivered, nil
		}
	}
}
