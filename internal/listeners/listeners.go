// Package listeners keeps the registrations: which events go to which callback,
// and how. Listeners stores them and matches events against them in memory; Calls
// checks them and serves their REST calls. Only this package accesses the tables
// listeners, listener_secrets and listeners_version.
//
// A change that a client makes applies, once it is answered, to the very next event of
// every instance, unless one does not learn of it within a second (see spread). While the database does not
// answer, the package continues with the registrations that it knows.
package listeners

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres"
	"github.com/gatehook/gatehook/internal/secret"
)

// Config of Listeners. Both functions are required.
type Config struct {
	// Keys seal the secrets and headers in the database.
	Keys secret.Keys
	// Forget deletes the deliveries that wait for a listener, in the transaction
	// that deletes the listener.
	Forget func(ctx context.Context, tx pgx.Tx, listenerID int64) error
	// Renew deletes the record of a listener's failures, in the transaction that
	// enables the listener or gives it another URL.
	Renew func(ctx context.Context, tx pgx.Tx, listenerID int64) error
	// Direct has the settings of the connection that hears of changes, if it is made
	// another way than the pool's; nil means that it is not.
	Direct *pgxpool.Pool
	// Peers are the instances on this database; nil means that there are no others.
	Peers Peers
}

// Listeners holds the registrations as one instance sees them. Make it with Open, then
// Run it; it is safe for concurrent use.
type Listeners struct {
	cfg   Config
	pool  postgres.DB
	hear  *pgxpool.Pool // the connection that hears of changes is beside it
	log   *slog.Logger
	table *table
	stale chan struct{} // holds a token when the table may be out of date
	poll  time.Duration // how often to check the version without a token
	// loaded is when the table was loaded, by the database's clock.
	loaded atomic.Pointer[time.Time]

	spread *spread // nil without peers
}

// Open reads the registrations, and seals with the first key every secret that is
// not sealed with it yet. It starts nothing.
func Open(ctx context.Context, pool *pgxpool.Pool, cfg Config, log *slog.Logger) (*Listeners, error) {
	s := &Listeners{
		cfg: cfg, pool: postgres.On(pool), hear: cmp.Or(cfg.Direct, pool), log: log,
		table: newTable(), stale: make(chan struct{}, 1), poll: pollEvery,
	}
	if cfg.Peers != nil {
		s.spread = newSpread(cfg.Peers, log)
	}
	if err := s.sealStored(ctx); err != nil {
		return nil, err
	}
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Match returns the ids of the enabled listeners that want an event, the raw ones
// first. missed means that a disabled listener wants it too, and may ask for it once
// it is enabled again.
func (s *Listeners) Match(e *event.Event) (ids []int64, missed bool) { return s.table.match(e) }

// Listener returns a registration as it is now, or nil.
func (s *Listeners) Listener(id int64) *event.Listener { return s.table.listener(id) }

// Needs returns the intents with which Discord sends every event that a listener
// wants. Disabled listeners count too, because they can get missed events later.
func (s *Listeners) Needs() event.Intents { return s.table.intents() }

// NeedsChanged returns a channel that holds a token when Needs has changed. It is for
// one reader.
func (s *Listeners) NeedsChanged() <-chan struct{} { return s.table.changed }

// Disable disables a listener and stores the reason. also runs in the same
// transaction; its error undoes everything. If the listener is gone, already disabled or
// has another URL by now, Disable does nothing and does not run also: what an old URL
// answered says nothing about a new one. So of several concurrent calls only one disables
// the listener.
func (s *Listeners) Disable(ctx context.Context, id int64, url, reason string, also func(context.Context, pgx.Tx) error) error {
	_, err := retryConflict(func() (*registration, error) {
		after, _, err := s.apply(ctx, func(tx pgx.Tx) (int64, *registration, error) {
			before, err := s.find(ctx, tx, `l.id = $1 AND l.url = $2 AND l.enabled FOR UPDATE OF l`, id, url)
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
		return after, err
	})
	if err != nil && !errors.Is(err, errNone) {
		return fmt.Errorf("disable listener %s: %w", event.ListenerID(id), err)
	}
	return nil
}

const (
	// pollEvery is how often to check for changes without a notification: LISTEN
	// does not work through every pooler.
	pollEvery = 5 * time.Second
	// pause is how long to wait between two reads, in times that the last one took: a
	// script that registers thousands of listeners must not keep the database busy.
	pause = 3
)

// Run keeps the table up to date until ctx ends.
func (s *Listeners) Run(ctx context.Context) error {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.listen(ctx)
	}()
	defer func() { <-stopped }()
	poll := time.NewTicker(s.poll)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
		case <-s.stale:
		}
		began := time.Now()
		err := s.refresh(ctx)
		if err == nil && s.spread != nil {
			err = s.spread.tell(ctx, s.table.currentVersion())
		}
		if err != nil && ctx.Err() == nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "reading the listeners failed, continuing with the known ones", slog.Any("error", err))
		}
		again := time.NewTimer(min(pause*time.Since(began), s.poll))
		select {
		case <-ctx.Done():
			again.Stop()
			return nil
		case <-again.C:
		}
	}
}

// refresh reads the registrations if their version has changed, or if a replaced secret has
// expired since: it must not sign any longer.
func (s *Listeners) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("reading the listeners took longer than 30 s"))
	defer cancel()
	var (
		version int64
		expired bool
	)
	if err := s.pool.QueryRow(ctx, `SELECT version, EXISTS (SELECT FROM listener_secrets WHERE expires_at > $1 AND expires_at <= now())
		FROM listeners_version`, *s.loaded.Load()).Scan(&version, &expired); err != nil {
		return fmt.Errorf("read the version of the listeners: %w", err)
	}
	if version == s.table.currentVersion() && !expired {
		return nil
	}
	return s.load(ctx)
}

func (s *Listeners) wake() {
	select {
	case s.stale <- struct{}{}:
	default:
	}
}

// maxWait is the longest wait between two tries to listen for notifications. It is
// longer than other waits for the database, because polling continues meanwhile.
const maxWait = 10 * time.Second

func newBackoff() retry.Backoff {
	return retry.WithCappedDuration(maxWait, retry.WithJitterPercent(20, retry.NewExponential(100*time.Millisecond)))
}

// listen waits for notifications of changes, on its own connection.
func (s *Listeners) listen(ctx context.Context) {
	backoff := newBackoff()
	next := retry.BackoffFunc(func() (time.Duration, bool) { return backoff.Next() })
	// Do ends only with ctx: it tries again after every failure.
	_ = retry.Do(ctx, next, func(ctx context.Context) error {
		began := time.Now()
		err := s.listenOnce(ctx)
		if time.Since(began) > maxWait { // it worked, so this is a new failure
			backoff = newBackoff()
		}
		if ctx.Err() == nil {
			s.log.LogAttrs(ctx, slog.LevelDebug, "can't listen for changes of listeners, polling instead", slog.Any("error", err))
		}
		return retry.RetryableError(err)
	})
}

func (s *Listeners) listenOnce(ctx context.Context) error {
	conn, err := postgres.Connect(ctx, s.hear)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is lost with it
	if _, err := conn.Exec(ctx, `LISTEN `+channel); err != nil {
		return err
	}
	s.wake() // for changes that were made before LISTEN
	for {
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return err
		}
		s.wake()
	}
}
