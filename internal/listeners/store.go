package listeners

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/gatehook/gatehook/internal/event"
)

// channel is the channel of the notifications of changes.
const channel = "gatehook_listeners"

// errNone means that no listener was found.
var errNone = pgx.ErrNoRows

// takenError means that another listener has the same event and URL.
type takenError struct{ id int64 }

func (e *takenError) Error() string {
	return "listener " + event.ListenerID(e.id) + " has this event and url"
}

func (s *Listeners) find(ctx context.Context, tx querier, where string, args ...any) (registration, error) {
	rows, err := tx.Query(ctx, `SELECT `+columns+` FROM listeners l WHERE `+where, args...)
	if err != nil {
		return registration{}, err
	}
	return pgx.CollectExactlyOneRow(rows, s.scan)
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// change runs one change of a listener that a client asked for, like apply. When it
// returns, the change is also in the tables of the other instances, unless they are late.
func (s *Listeners) change(ctx context.Context, f func(pgx.Tx) (id int64, after *registration, err error)) (*registration, error) {
	after, version, err := s.apply(ctx, f)
	if err == nil && s.spread != nil {
		s.spread.wait(ctx, version)
	}
	return after, err
}

// apply runs one change of a listener: f makes the change and returns the changed
// registration, nil if it was removed. When apply returns, the change is in this
// instance's table, and the other instances are notified.
func (s *Listeners) apply(ctx context.Context, f func(pgx.Tx) (id int64, after *registration, err error)) (after *registration, version int64, err error) {
	var id int64
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) (err error) {
		if id, after, err = f(tx); err != nil {
			return err
		}
		// Last, because all changes lock this one row.
		return tx.QueryRow(ctx, `WITH v AS (UPDATE listeners_version SET version = version + 1 RETURNING version)
			SELECT version FROM v, pg_notify($1, '')`, channel).Scan(&version)
	})
	if err != nil {
		return nil, 0, err
	}
	var l *event.Listener
	if after != nil {
		l = &after.Listener
	}
	if !s.table.apply(version, id, l) {
		// Another instance made a change meanwhile. Ours is committed: if the
		// registrations can't be read now, Run reads them later.
		if err := s.load(ctx); err != nil {
			s.wake()
		}
	}
	return after, version, nil
}

// errVanished means that a conflicting listener was removed before we read it.
var errVanished = errors.New("the conflicting listener was removed")

// retryConflict repeats a change that conflicted with another one and stored nothing:
// the conflicting listener was removed before we read it, or each change waited for
// the other (PostgreSQL, Error Codes: 40001 and 40P01). It gives up after maxTries:
// that many conflicts can't be chance.
func retryConflict(change func() (*registration, error)) (after *registration, err error) {
	for range maxTries {
		after, err = change()
		pgErr := (*pgconn.PgError)(nil)
		conflict := errors.Is(err, errVanished) || errors.As(err, &pgErr) && (pgErr.Code == "40001" || pgErr.Code == "40P01")
		if !conflict {
			break
		}
	}
	return after, err
}

const maxTries = 5

// insert stores a new listener, or returns a takenError.
func (s *Listeners) insert(ctx context.Context, r registration) (*registration, error) {
	return retryConflict(func() (*registration, error) { return s.tryInsert(ctx, r) })
}

func (s *Listeners) tryInsert(ctx context.Context, r registration) (*registration, error) {
	return s.change(ctx, func(tx pgx.Tx) (int64, *registration, error) {
		// Numbered first, because the contents of the rows are sealed for the id.
		var id int64
		if err := tx.QueryRow(ctx, `SELECT nextval(pg_get_serial_sequence('listeners', 'id'))`).Scan(&id); err != nil {
			return 0, nil, fmt.Errorf("number a listener: %w", err)
		}
		headers, err := sealHeaders(s.cfg.Keys, id, r.Headers)
		if err != nil {
			return 0, nil, fmt.Errorf("store a listener's headers: %w", err)
		}
		err = tx.QueryRow(ctx, insertListener, r.values(id, headers)...).Scan(&id)
		if errors.Is(err, errNone) {
			return 0, nil, s.taken(ctx, tx, r)
		}
		if err != nil {
			return 0, nil, fmt.Errorf("store a listener: %w", err)
		}
		if err := s.addSecret(ctx, tx, id, r.newSecret); err != nil {
			return 0, nil, err
		}
		after, err := s.find(ctx, tx, `l.id = $1`, id)
		return id, &after, err
	})
}

func (s *Listeners) addSecret(ctx context.Context, tx pgx.Tx, listener int64, plain string) error {
	var id int64
	if err := tx.QueryRow(ctx, `SELECT nextval(pg_get_serial_sequence('listener_secrets', 'id'))`).Scan(&id); err != nil {
		return fmt.Errorf("number a listener's secret: %w", err)
	}
	if _, err := tx.Exec(ctx, `INSERT INTO listener_secrets (id, listener_id, secret) OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3)`,
		id, listener, s.cfg.Keys.Seal(plain, secretRow(id, listener))); err != nil {
		return fmt.Errorf("store a listener's secret: %w", err)
	}
	return nil
}

func (s *Listeners) taken(ctx context.Context, tx querier, r registration) error {
	other, err := s.find(ctx, tx, `l.event = $1 AND l.url = $2`, r.Event, r.URL)
	if errors.Is(err, errNone) {
		return errVanished
	}
	if err != nil {
		return fmt.Errorf("read the conflicting listener: %w", err)
	}
	return &takenError{other.ID}
}

// update replaces a registration with f's result. It locks the listener's row, so that
// concurrent updates can't undo each other. It may call f several times.
func (s *Listeners) update(ctx context.Context, id int64, f func(registration) (registration, error)) (*registration, error) {
	return retryConflict(func() (*registration, error) { return s.tryUpdate(ctx, id, f) })
}

func (s *Listeners) tryUpdate(ctx context.Context, id int64, f func(registration) (registration, error)) (*registration, error) {
	var wanted registration
	after, err := s.change(ctx, func(tx pgx.Tx) (int64, *registration, error) {
		before, err := s.find(ctx, tx, `l.id = $1 FOR UPDATE OF l`, id)
		if err != nil {
			return 0, nil, err
		}
		if wanted, err = f(before); err != nil {
			return 0, nil, err
		}
		r := wanted
		headers, err := sealHeaders(s.cfg.Keys, id, r.Headers)
		if err != nil {
			return 0, nil, fmt.Errorf("store a listener's headers: %w", err)
		}
		if _, err := tx.Exec(ctx, updateListener, r.values(id, headers)...); err != nil {
			return 0, nil, fmt.Errorf("update a listener: %w", err)
		}
		if r.Enabled && !before.Enabled || r.URL != before.URL {
			if err := s.cfg.Renew(ctx, tx, id); err != nil {
				return 0, nil, err
			}
		}
		after, err := s.find(ctx, tx, `l.id = $1`, id)
		return id, &after, err
	})
	if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Code == "23505" {
		return nil, s.taken(ctx, s.pool, wanted)
	}
	return after, err
}

const (
	// rotationOverlap is how long a replaced secret continues to sign.
	rotationOverlap = 24 * time.Hour
	// maxSecrets is how many secrets sign at once.
	maxSecrets = 10
)

// rotate gives a listener a new secret. Each replaced one still signs for rotationOverlap,
// however often this is called: a client may have lost the answer to its last call.
func (s *Listeners) rotate(ctx context.Context, id int64, secret string) (*registration, error) {
	return retryConflict(func() (*registration, error) {
		return s.change(ctx, func(tx pgx.Tx) (int64, *registration, error) {
			if _, err := s.find(ctx, tx, `l.id = $1 FOR UPDATE OF l`, id); err != nil {
				return 0, nil, err
			}
			var b pgx.Batch
			b.Queue(`UPDATE listener_secrets SET expires_at = now() + $2::interval WHERE listener_id = $1 AND expires_at IS NULL`, id, rotationOverlap)
			b.Queue(`DELETE FROM listener_secrets WHERE listener_id = $1 AND (expires_at <= now()
				OR id NOT IN (SELECT id FROM listener_secrets WHERE listener_id = $1 ORDER BY id DESC LIMIT $2))`, id, maxSecrets-1)
			b.Queue(`UPDATE listeners SET updated_at = now() WHERE id = $1`, id)
			if err := tx.SendBatch(ctx, &b).Close(); err != nil {
				return 0, nil, fmt.Errorf("rotate a listener's secret: %w", err)
			}
			if err := s.addSecret(ctx, tx, id, secret); err != nil {
				return 0, nil, err
			}
			after, err := s.find(ctx, tx, `l.id = $1`, id)
			return id, &after, err
		})
	})
}

// remove deletes a listener and the deliveries that wait for it, unless check, which may be
// nil, has an error.
func (s *Listeners) remove(ctx context.Context, check func(*registration) error, where string, args ...any) error {
	_, err := retryConflict(func() (*registration, error) {
		return s.change(ctx, func(tx pgx.Tx) (int64, *registration, error) {
			r, err := s.find(ctx, tx, where+` FOR UPDATE OF l`, args...)
			if err == nil && check != nil {
				err = check(&r)
			}
			if err != nil {
				return 0, nil, err
			}
			if _, err := tx.Exec(ctx, `DELETE FROM listeners WHERE id = $1`, r.ID); err != nil {
				return 0, nil, err
			}
			return r.ID, nil, s.cfg.Forget(ctx, tx, r.ID)
		})
	})
	return err
}

// page returns listeners that are older than a given one, the newest first. A nil name or
// nil urls stand for all.
func (s *Listeners) page(ctx context.Context, eventName *string, urls []string, before int64, limit int) ([]registration, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+columns+` FROM listeners l
		WHERE ($1::text IS NULL OR l.event = $1) AND ($2::text[] IS NULL OR l.url = ANY($2)) AND l.id < $3
		ORDER BY l.id DESC LIMIT $4`, eventName, urls, before, limit)
	if err != nil {
		return nil, fmt.Errorf("list listeners: %w", err)
	}
	list, err := pgx.CollectRows(rows, s.scan)
	if err != nil {
		return nil, fmt.Errorf("list listeners: %w", err)
	}
	return list, nil
}

// load reads all registrations into the table, from one snapshot.
func (s *Listeners) load(ctx context.Context) error {
	var (
		version int64
		at      time.Time
		all     []*event.Listener
	)
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT version, now() FROM listeners_version`).Scan(&version, &at); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT `+columns+` FROM listeners l`)
		if err != nil {
			return err
		}
		list, err := pgx.CollectRows(rows, s.scan)
		for i := range list {
			all = append(all, &list[i].Listener)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("load the listeners: %w", err)
	}
	s.table.replace(version, all)
	s.loaded.Store(&at)
	return nil
}
