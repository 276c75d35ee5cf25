// Package listeners keeps the registrations: which event goes to which
// callback, and how. It checks them, stores them, serves their REST calls and
// answers, from memory, who wants an event.
//
// It promises that a listener which was created, changed or removed through
// this instance is so for the very next event, and through another one within
// moments. While the database does not answer it goes on with what it knows.
package listeners

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/secret"
)

// Config of Listeners. Both functions are required.
type Config struct {
	// Keys seal the secrets and headers that are stored.
	Keys secret.Keys
	// Forget drops what waits for a listener, in the transaction that deletes
	// it.
	Forget func(ctx context.Context, tx pgx.Tx, listenerID int64) error
	// Renew forgets how a listener's callback did so far, in the transaction
	// that enables the listener or gives it another URL.
	Renew func(ctx context.Context, tx pgx.Tx, listenerID int64) error
}

// Listeners is the registrations as one instance sees them. Make it with Open,
// then Run it; it is safe for concurrent use.
type Listeners struct {
	cfg   Config
	pool  *pgxpool.Pool
	log   *slog.Logger
	table *table
	look  chan struct{} // holds a token when the database should be looked at
	poll  time.Duration // how often it is looked at anyway
}

// Open reads the registrations, and seals with the first key what is stored
// otherwise. It starts nothing.
func Open(ctx context.Context, pool *pgxpool.Pool, cfg Config, log *slog.Logger) (*Listeners, error) {
	s := &Listeners{cfg: cfg, pool: pool, log: log, table: newTable(), look: make(chan struct{}, 1), poll: pollEvery}
	if err := s.sealStored(ctx); err != nil {
		return nil, err
	}
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Match returns the ids of the enabled listeners that want an event, the raw
// ones first. missed: disabled ones want it as well, and may ask for it once they
// are enabled again.
func (s *Listeners) Match(e *event.Event) (ids []int64, missed bool) { return s.table.match(e) }

// Listener returns a registration as it is now, or nil.
func (s *Listeners) Listener(id int64) *event.Listener { return s.table.listener(id) }

// Needs are the intents with which everything comes that the listeners want: the
// disabled ones too, so that they can get later what they miss.
func (s *Listeners) Needs() event.Intents { return s.table.intents() }

// NeedsChanged has a token whenever Needs has changed. It is for one reader.
func (s *Listeners) NeedsChanged() <-chan struct{} { return s.table.changed }

// Disable stops deliveries to a listener; the reason is shown with it. also runs
// in the same transaction, and its error undoes all. One that is gone or
// disabled already stays so, without it: of several at once one disables it.
func (s *Listeners) Disable(ctx context.Context, id int64, reason string, also func(context.Context, pgx.Tx) error) error {
	_, err := again(func() (*registration, error) {
		return s.change(ctx, func(tx pgx.Tx) (int64, *registration, error) {
			before, err := s.find(ctx, tx, `l.id = $1 AND l.enabled FOR UPDATE OF l`, id)
			if err != nil {
				return 0, nil, err
			}
			if _, err := tx.Exec(ctx, `UPDATE listeners SET enabled = false, disabled_at = now(), disabled_reason = $2, updated_at = now()
				WHERE id = $1`, id, reason); err != nil {
				return 0, nil, err
			}
			if err := also(ctx, tx); err != nil {
				return 0, nil, err
			}
			after, err := s.find(ctx, tx, `l.id = $1`, before.ID)
			return id, &after, err
		})
	})
	if err != nil && !errors.Is(err, errNone) {
		return fmt.Errorf("disable listener %s: %w", event.ListenerID(id), err)
	}
	return nil
}

const (
	// pollEvery is how often the database is asked although it announced
	// nothing: LISTEN does not work through every pooler.
	pollEvery = 5 * time.Second
	// settle is how long changes may gather before they are read: a script
	// that registers hundreds should not cost hundreds of reads.
	settle = 100 * time.Millisecond
)

// Run keeps the table fresh until ctx ends.
func (s *Listeners) Run(ctx context.Context) error {
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		s.hear(ctx)
	}()
	defer func() { <-heard }()
	poll := time.NewTicker(s.poll)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
		case <-s.look:
		}
		if err := s.refresh(ctx); err != nil && ctx.Err() == nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "reading the listeners failed, going on with those known", slog.Any("error", err))
		}
	}
}

// refresh reads the registrations if they have another version.
func (s *Listeners) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("reading the listeners took longer than 30 s"))
	defer cancel()
	var version int64
	if err := s.pool.QueryRow(ctx, `SELECT version FROM listeners_version`).Scan(&version); err != nil {
		return fmt.Errorf("ask for the listeners' version: %w", err)
	}
	if version == s.table.at() {
		return nil
	}
	return s.load(ctx)
}

func (s *Listeners) wake() {
	select {
	case s.look <- struct{}{}:
	default:
	}
}

// longestWait is between two tries to hear of changes.
const longestWait = 10 * time.Second

func newBackoff() retry.Backoff {
	return retry.WithCappedDuration(longestWait, retry.WithJitterPercent(20, retry.NewExponential(100*time.Millisecond)))
}

// hear waits for announcements of changes on a connection of its own.
func (s *Listeners) hear(ctx context.Context) {
	backoff := newBackoff()
	next := retry.BackoffFunc(func() (time.Duration, bool) { return backoff.Next() })
	// It ends with ctx only: every failure is tried again, and polling stands
	// in meanwhile.
	_ = retry.Do(ctx, next, func(ctx context.Context) error {
		began := time.Now()
		err := s.hearOn(ctx)
		if time.Since(began) > longestWait { // it worked: what broke it now is something new
			backoff = newBackoff()
		}
		if ctx.Err() == nil {
			s.log.LogAttrs(ctx, slog.LevelDebug, "not hearing of listener changes, polling", slog.Any("error", err))
		}
		return retry.RetryableError(err)
	})
}

func (s *Listeners) hearOn(ctx context.Context) error {
	conn, err := pgx.ConnectConfig(ctx, s.pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is lost with it
	if _, err := conn.Exec(ctx, `LISTEN `+channel); err != nil {
		return err
	}
	s.wake() // for what happened before
	for {
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return err
		}
		timer := time.NewTimer(settle)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		s.wake()
	}
}
