package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/event"
)

const (
	// maxAnswerWait is how long another instance may take to do a command.
	maxAnswerWait = 5 * time.Second
	// answerPollInterval is how often it is asked whether it has.
	answerPollInterval = 100 * time.Millisecond
	// maxTaken is how many commands are taken at a time. The connection's
	// limit refuses what is more than that soon enough.
	maxTaken = 200
	// commandRetention is how long an answer may lie there that nobody looks at.
	commandRetention = time.Minute
)

// Relay is what the instances of a bot share about commands, through the
// database: its presence, and commands for shards that another one has.
type Relay struct {
	pool    *pgxpool.Pool
	timeout time.Duration
}

// NewRelay uses pool, which the caller closes.
func NewRelay(pool *pgxpool.Pool) *Relay { return &Relay{pool: pool, timeout: maxAnswerWait} }

// setPresence stores a presence, or tells how long to wait with that. All
// times are the database's: the limit is one for all instances.
func (r *Relay) setPresence(ctx context.Context, applicationID event.Snowflake, d json.RawMessage) (p presence, wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	p.d = d
	err = r.pool.QueryRow(ctx, `INSERT INTO presences AS p (application_id, presence, changes)
		VALUES ($1, $2, ARRAY[clock_timestamp()])
		ON CONFLICT (application_id) DO UPDATE
		SET presence = $2, version = p.version + 1,
		    changes = (p.changes || clock_timestamp())[greatest(cardinality(p.changes) - $3 + 2, 1):]
		WHERE cardinality(p.changes) < $3 OR p.changes[1] <= clock_timestamp() - $4::interval
		RETURNING version, changes[cardinality(changes)]`,
		int64(applicationID), []byte(d), presenceLimit, presenceWindow).Scan(&p.version, &p.at)
	if !errors.Is(err, pgx.ErrNoRows) {
		return p, 0, wrap(err, "store the presence")
	}
	err = r.pool.QueryRow(ctx, `SELECT greatest(changes[1] + $2::interval - clock_timestamp(), interval '1 ms')
		FROM presences WHERE application_id = $1`, int64(applicationID), presenceWindow).Scan(&wait)
	return presence{}, wait, wrap(err, "ask when the presence may be changed")
}

// presence is what was set last; the zero value for nothing.
func (r *Relay) presence(ctx context.Context, applicationID event.Snowflake) (p presence, err error) {
	err = r.pool.QueryRow(ctx, `SELECT version, presence, changes[cardinality(changes)] FROM presences WHERE application_id = $1`,
		int64(applicationID)).Scan(&p.version, &p.d, &p.at)
	if errors.Is(err, pgx.ErrNoRows) {
		return presence{}, nil
	}
	return p, wrap(err, "read the presence")
}

// ask has a command done by the instance that has the shard, and returns how
// that went: a commandError if not well.
func (r *Relay) ask(parent context.Context, applicationID event.Snowflake, shard event.Shard, op int, d json.RawMessage) error {
	ctx, cancel := context.WithTimeoutCause(parent, 2*r.timeout, errors.New("the database took too long"))
	defer cancel()
	var id int64
	if err := r.pool.QueryRow(ctx, `INSERT INTO shard_commands (application_id, shard_count, shard_id, op, payload)
		VALUES ($1, $2, $3, $4, $5) RETURNING id`, int64(applicationID), shard.Count, shard.ID, op, []byte(d)).Scan(&id); err != nil {
		return wrap(err, "hand a command over")
	}
	limit := time.NewTimer(r.timeout)
	defer limit.Stop()
	tick := time.NewTicker(answerPollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return wrap(context.Cause(ctx), "wait for a command")
		case <-limit.C:
			return r.giveUp(ctx, id, shard)
		case <-tick.C:
		}
		var outcome commandError
		var wait int64
		err := r.pool.QueryRow(ctx, `SELECT outcome, detail, retry_after_ms FROM shard_commands WHERE id = $1 AND answered_at IS NOT NULL`,
			id).Scan(&outcome.outcome, &outcome.detail, &wait)
		if !errors.Is(err, pgx.ErrNoRows) {
			outcome.retryAfter = time.Duration(wait) * time.Millisecond
			return answered(err, outcome)
		}
	}
}

// answered is how a command went.
func answered(err error, outcome commandError) error {
	switch {
	case err != nil:
		return wrap(err, "wait for a command")
	case outcome.outcome == outcomeDone:
		return nil
	default:
		return &outcome
	}
}

// giveUp takes a command back, so that nobody does it after its caller was
// told that it was not done.
func (r *Relay) giveUp(ctx context.Context, id int64, shard event.Shard) error {
	var outcome commandError
	var taken, done bool
	var wait int64
	err := r.pool.QueryRow(ctx, `DELETE FROM shard_commands WHERE id = $1
		RETURNING taken_at IS NOT NULL, answered_at IS NOT NULL, outcome, detail, retry_after_ms`,
		id).Scan(&taken, &done, &outcome.outcome, &outcome.detail, &wait)
	outcome.retryAfter = time.Duration(wait) * time.Millisecond
	switch {
	case err != nil || done:
		return answered(err, outcome)
	case taken:
		return &commandError{
			outcome: outcomeUnanswered, retryAfter: r.timeout,
			detail: fmt.Sprintf("the server that has shard %v did not answer in %v: the command may have been sent", shard, r.timeout),
		}
	default:
		return &commandError{
			outcome: outcomeUnanswered, retryAfter: r.timeout,
			detail: fmt.Sprintf("no server has shard %v at the moment, so the command was not sent: try again", shard),
		}
	}
}

// relayed is a command that another instance wants done.
type relayed struct {
	id    int64
	shard event.Shard
	op    int
	d     json.RawMessage
}

// take returns the commands that wait for these shards, each of them once, and
// the presence if it is another than the one known.
func (r *Relay) take(ctx context.Context, applicationID event.Snowflake, shards []*shard, known presence) ([]relayed, presence, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	counts, ids := make([]int, len(shards)), make([]int, len(shards))
	for i, s := range shards {
		counts[i], ids[i] = s.id.Count, s.id.ID
	}
	var taken []relayed
	latest := known
	var batch pgx.Batch
	// What its caller gave up on is not done any more, wherever it comes from.
	batch.Queue(`UPDATE shard_commands SET taken_at = now() WHERE id IN (
			SELECT id FROM shard_commands
			WHERE application_id = $1 AND taken_at IS NULL AND created_at > now() - $4::interval
			  AND (shard_count, shard_id) IN (SELECT * FROM unnest($2::int[], $3::int[]))
			ORDER BY id LIMIT $5 FOR UPDATE SKIP LOCKED)
		RETURNING id, shard_count, shard_id, op, payload`, int64(applicationID), counts, ids, r.timeout, maxTaken,
	).Query(func(rows pgx.Rows) (err error) {
		taken, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (c relayed, err error) {
			return c, row.Scan(&c.id, &c.shard.Count, &c.shard.ID, &c.op, &c.d)
		})
		return err
	})
	batch.Queue(`SELECT version, presence, changes[cardinality(changes)] FROM presences WHERE application_id = $1 AND version <> $2`,
		int64(applicationID), known.version,
	).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			if err := rows.Scan(&latest.version, &latest.d, &latest.at); err != nil {
				return err
			}
		}
		return rows.Err()
	})
	if err := r.pool.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, known, wrap(err, "look for commands") // taken together: nothing is
	}
	return taken, latest, nil
}

// answer answers a command that was taken.
func (r *Relay) answer(ctx context.Context, id int64, how *commandError) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	_, err := r.pool.Exec(ctx, `UPDATE shard_commands SET answered_at = now(), outcome = $2, detail = $3, retry_after_ms = $4 WHERE id = $1`,
		id, how.outcome, how.detail, how.retryAfter.Milliseconds())
	return wrap(err, "answer a command")
}

// sweep forgets what nobody asks for any more.
func (r *Relay) sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	_, err := r.pool.Exec(ctx, `DELETE FROM shard_commands WHERE created_at < now() - $1::interval`, commandRetention)
	return wrap(err, "forget old commands")
}

func wrap(err error, operation string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", operation, err)
}
