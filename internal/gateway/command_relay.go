package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres"
)

const (
	// maxAnswerWait is how long another instance may take to answer a command.
	maxAnswerWait = 5 * time.Second
	// answerPollInterval is how often to check for answers.
	answerPollInterval = 100 * time.Millisecond
	// maxTaken is how many commands are taken at a time. A connection would soon
	// refuse more.
	maxTaken = 200
	// commandRetention is how long the row of a command is kept.
	commandRetention = time.Minute
)

// Relay shares a bot's presence, and the commands for shards of another
// instance, through the database. It is safe for concurrent use. It owns the
// tables presences and shard_commands.
type Relay struct {
	pool    postgres.DB
	timeout time.Duration
	// answers are those to the commands that callers wait for: all share one look.
	answers *postgres.Shared[map[int64]commandError]

	mu      sync.Mutex         // guards waiting
	waiting map[int64]struct{} // the commands that callers wait for
}

// NewRelay returns a Relay that uses pool, which the caller closes.
func NewRelay(pool *pgxpool.Pool) *Relay {
	r := &Relay{pool: postgres.On(pool), timeout: maxAnswerWait, waiting: make(map[int64]struct{})}
	r.answers = postgres.NewShared(r.look)
	return r
}

// setPresence stores a presence, or returns how long to wait before it may be
// changed. All times are the database's, so that one limit holds for all
// instances.
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

// presence returns the presence that was set last; the zero value for none.
func (r *Relay) presence(ctx context.Context, applicationID event.Snowflake) (p presence, err error) {
	err = r.pool.QueryRow(ctx, `SELECT version, presence, changes[cardinality(changes)] FROM presences WHERE application_id = $1`,
		int64(applicationID)).Scan(&p.version, &p.d, &p.at)
	if errors.Is(err, pgx.ErrNoRows) {
		return presence{}, nil
	}
	return p, wrap(err, "read the presence")
}

// ask hands a command to the instance that runs the shard and waits for the
// answer. The error is a *commandError if the command was not performed.
func (r *Relay) ask(parent context.Context, applicationID event.Snowflake, shard event.Shard, op int, d json.RawMessage) error {
	ctx, cancel := context.WithTimeoutCause(parent, 2*r.timeout, errors.New("the database took too long"))
	defer cancel()
	var id int64
	if err := r.pool.QueryRow(ctx, `INSERT INTO shard_commands (application_id, shard_count, shard_id, op, payload)
		VALUES ($1, $2, $3, $4, $5) RETURNING id`, int64(applicationID), shard.Count, shard.ID, op, []byte(d)).Scan(&id); err != nil {
		return wrap(err, "hand over a command")
	}
	defer r.await(id)()
	limit := time.NewTimer(r.timeout)
	defer limit.Stop()
	tick := time.NewTicker(answerPollInterval)
	defer tick.Stop()
	since := time.Now()
	for {
		select {
		case <-ctx.Done():
			return wrap(context.Cause(ctx), "wait for a command")
		case <-limit.C:
			return r.giveUp(ctx, id, shard)
		case <-tick.C:
		}
		answers, asked, err := r.answers.Answer(ctx, since)
		result, done := answers[id]
		if err != nil || done {
			return answered(err, result)
		}
		since = asked // next, whoever is the first to look does it for all
	}
}

// await lets look look for the answer to a command, until done is called.
func (r *Relay) await(id int64) (done func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting[id] = struct{}{}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.waiting, id)
	}
}

// look returns the answers that have come to the commands that callers wait for.
func (r *Relay) look(ctx context.Context) (map[int64]commandError, error) {
	r.mu.Lock()
	ids := slices.Collect(maps.Keys(r.waiting))
	r.mu.Unlock()
	rows, err := r.pool.Query(ctx, `SELECT id, outcome, detail, retry_after_ms FROM shard_commands WHERE id = ANY($1) AND answered_at IS NOT NULL`, ids)
	if err != nil {
		return nil, err
	}
	answers := make(map[int64]commandError)
	var (
		id, wait int64
		result   commandError
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &result.outcome, &result.detail, &wait}, func() error {
		result.retryAfter = time.Duration(wait) * time.Millisecond
		answers[id] = result
		return nil
	})
	return answers, err
}

// answered returns the error for the answer to a command: nil if the command
// was performed.
func answered(err error, result commandError) error {
	switch {
	case err != nil:
		return wrap(err, "wait for a command")
	case result.outcome == outcomeDone:
		return nil
	default:
		return &result
	}
}

// giveUp withdraws a command, so that no instance performs it after its caller
// got an error.
func (r *Relay) giveUp(ctx context.Context, id int64, shard event.Shard) error {
	var result commandError
	var taken, done bool
	var wait int64
	err := r.pool.QueryRow(ctx, `DELETE FROM shard_commands WHERE id = $1
		RETURNING taken_at IS NOT NULL, answered_at IS NOT NULL, outcome, detail, retry_after_ms`,
		id).Scan(&taken, &done, &result.outcome, &result.detail, &wait)
	result.retryAfter = time.Duration(wait) * time.Millisecond
	switch {
	case err != nil || done:
		return answered(err, result)
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

// relayed is a command of another instance.
type relayed struct {
	id    int64
	shard event.Shard
	op    int
	d     json.RawMessage
}

// take returns the commands that wait for these shards, each to one caller
// only, and the current presence, given the last known one.
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
	// A command must not be performed after its caller gave up.
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
		return nil, known, wrap(err, "look for commands") // one transaction: nothing was taken
	}
	return taken, latest, nil
}

// answer answers a command that was taken.
func (r *Relay) answer(ctx context.Context, id int64, result *commandError) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	_, err := r.pool.Exec(ctx, `UPDATE shard_commands SET answered_at = now(), outcome = $2, detail = $3, retry_after_ms = $4 WHERE id = $1`,
		id, result.outcome, result.detail, result.retryAfter.Milliseconds())
	return wrap(err, "answer a command")
}

// sweep deletes the rows that no instance needs any longer.
func (r *Relay) sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	_, err := r.pool.Exec(ctx, `DELETE FROM shard_commands WHERE created_at < now() - $1::interval`, commandRetention)
	return wrap(err, "forget old commands")
}

// wrap adds the operation to an error. It returns nil for nil.
func wrap(err error, operation string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", operation, err)
}
