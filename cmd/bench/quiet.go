package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/secret"
)

const (
	// quietSettle is how long the shards rest before they are measured: the work of
	// their start is done by then, and PostgreSQL has counted it (an idle connection
	// reports its transactions after 10 s).
	quietSettle = 15 * time.Second
	// quietTimeout is how long each change may take.
	quietTimeout = 10 * time.Minute
	// pollEvery is how often GET /shards is asked whether a change is complete. It is
	// also the error of the times.
	pollEvery = 100 * time.Millisecond
)

// quiet is what shards without events cost.
type quiet struct {
	Shards int `json:"shards"`
	// Start is the time from the start of the process until all shards are in service.
	Start time.Duration `json:"start_ns"`
	// Memory is that of the server at rest, in bytes.
	Memory int64 `json:"server_memory_bytes"`
	// ServerCPU and PostgresCPU are shares of one processor at rest.
	ServerCPU   float64 `json:"server_cpu_share"`
	PostgresCPU float64 `json:"postgres_cpu_share"`
	// Transactions is how many PostgreSQL makes per second at rest.
	Transactions float64 `json:"transactions_per_second"`
	// MoreIntents is the time from the registration of a listener that needs a new
	// intent until all shards have it.
	MoreIntents time.Duration `json:"more_intents_ns"`
	// Reshard is the time from the start of a server for Shards shards, where half as
	// many ran before, until the new set delivers.
	Reshard time.Duration `json:"reshard_ns"`
	// ReshardPeak is the most memory that the server used for that, in bytes.
	ReshardPeak int64 `json:"reshard_peak_memory_bytes"`
}

// quietHome is where the servers of one database run, one after the other.
type quietHome struct {
	discord *discordtest.Server
	db      secret.Value
	dataDir string
}

// quiet measures n shards without events.
func (b *bench) quiet(ctx context.Context, n int) (q *quiet, err error) {
	q = &quiet{Shards: n}
	if err := b.quietRest(ctx, q); err != nil {
		return nil, err
	}
	if err := b.quietReshard(ctx, q); err != nil {
		return nil, err
	}
	return q, nil
}

// quietRest measures the start, the rest and the change to more intents.
func (b *bench) quietRest(ctx context.Context, q *quiet) (err error) {
	home, err := b.quietHome(ctx, q.Shards)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, home.close(err)) }()
	b.progress("starting %d shards …", q.Shards)
	began := time.Now()
	s, err := b.startQuiet(ctx, home, q.Shards)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.awaitShards(ctx, q.Shards, func(sh shardStatus) bool { return sh.State == "connected" }); err != nil {
		return err
	}
	q.Start = time.Since(began)
	b.progress("  %v; measuring the rest …", q.Start.Round(pollEvery))
	if err := b.rest(ctx, q, s, home.db); err != nil {
		return err
	}
	b.progress("  more intents …")
	began = time.Now()
	if _, err := s.register(ctx, "MESSAGE_CREATE", b.sink.url()+"/0"); err != nil {
		return err
	}
	if err := s.awaitShards(ctx, q.Shards, func(sh shardStatus) bool {
		return sh.State == "connected" && slices.Contains(sh.Intents, "GUILD_MESSAGES")
	}); err != nil {
		return err
	}
	q.MoreIntents = time.Since(began)
	return nil
}

// rest measures a server at rest.
func (b *bench) rest(ctx context.Context, q *quiet, s *server, db secret.Value) error {
	if err := sleep(ctx, quietSettle); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, db.Reveal())
	if err != nil {
		return fmt.Errorf("count transactions: %w", err)
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is lost with it
	count := func() (n int64, err error) {
		err = conn.QueryRow(ctx, `SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()`).Scan(&n)
		if err != nil {
			err = fmt.Errorf("count transactions: %w", err)
		}
		return n, err
	}
	before, err := count()
	if err != nil {
		return err
	}
	began := time.Now()
	used, err := readUsage(s.pid(), 0)
	if err != nil && !errors.Is(err, errNoUsage) {
		return err
	}
	if err := sleep(ctx, b.options.roundTime); err != nil {
		return err
	}
	now, err := readUsage(s.pid(), 0)
	if err != nil && !errors.Is(err, errNoUsage) {
		return err
	}
	after, err := count()
	if err != nil {
		return err
	}
	took := time.Since(began)
	q.Transactions = per(after-before-1, took) // without the first count
	spent := now.minus(used)
	q.ServerCPU, q.PostgresCPU = spent.server.Seconds()/took.Seconds(), spent.postgres.Seconds()/took.Seconds()
	if q.Memory, err = memory(s.pid()); err != nil && !errors.Is(err, errNoUsage) {
		return err
	}
	return nil
}

// quietReshard measures the change from half of the shards to all.
func (b *bench) quietReshard(ctx context.Context, q *quiet) (err error) {
	home, err := b.quietHome(ctx, q.Shards)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, home.close(err)) }()
	half := q.Shards / 2
	b.progress("from %d shards to %d …", half, q.Shards)
	delivering := func(sh shardStatus) bool { return sh.State == "connected" && sh.Role == "delivering" }
	s, err := b.startQuiet(ctx, home, half)
	if err != nil {
		return err
	}
	err = errors.Join(s.awaitShards(ctx, half, delivering), s.stop())
	if err != nil {
		return err
	}
	began := time.Now()
	if s, err = b.startQuiet(ctx, home, q.Shards); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.awaitShards(ctx, q.Shards, delivering); err != nil {
		return err
	}
	q.Reshard = time.Since(began)
	if q.ReshardPeak, err = peakMemory(s.pid()); err != nil && !errors.Is(err, errNoUsage) {
		return err
	}
	return nil
}

// quietHome starts a simulated Discord that lets all shards start at once, and makes a
// database.
func (b *bench) quietHome(ctx context.Context, shards int) (h *quietHome, err error) {
	h = &quietHome{}
	if h.discord, err = discordtest.Start(discordtest.Config{
		Shards: shards, ReplayLimit: 64,
		SessionStart: discordtest.SessionStart{Total: 20 * shards, Remaining: 20 * shards, ResetAfter: time.Hour, MaxConcurrency: shards},
	}); err != nil {
		return h, fmt.Errorf("start the simulated Discord: %w", err)
	}
	if h.db, err = b.database(ctx); err == nil {
		h.dataDir, err = os.MkdirTemp(b.dir, "server-")
	}
	if err != nil {
		h.discord.Close()
	}
	return h, err
}

// close reports what the server did that Discord forbids, unless there was another error.
func (h *quietHome) close(cause error) (err error) {
	defer h.discord.Close()
	if cause != nil {
		return nil
	}
	for _, e := range h.discord.Illegal() {
		err = errors.Join(err, fmt.Errorf("the server broke a rule of Discord: %s", e.Detail))
	}
	return err
}

func (b *bench) startQuiet(ctx context.Context, h *quietHome, shards int) (*server, error) {
	return startServer(ctx, b.server, h.dataDir, h.db, h.discord, "GATEHOOK_INTENTS=auto", "GATEHOOK_SHARDS="+strconv.Itoa(shards))
}

// shardStatus is what the measurements need of a shard in GET /shards.
type shardStatus struct {
	State   string   `json:"state"`
	Role    string   `json:"role"`
	Intents []string `json:"intents"`
}

// awaitShards waits until n shards, and no others, satisfy a condition.
func (s *server) awaitShards(ctx context.Context, n int, ok func(shardStatus) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, quietTimeout, fmt.Errorf("not all of %d shards got there within %v", n, quietTimeout))
	defer cancel()
	for {
		answer, err := s.call(ctx, http.MethodGet, "/shards", nil, http.StatusOK)
		if err != nil {
			return err
		}
		var list struct {
			Data []shardStatus `json:"data"`
		}
		if err := json.Unmarshal(answer, &list); err != nil {
			return fmt.Errorf("read the shards: %w", err)
		}
		if len(list.Data) == n && !slices.ContainsFunc(list.Data, func(sh shardStatus) bool { return !ok(sh) }) {
			return nil
		}
		select {
		case <-s.done:
			return fmt.Errorf("the server ended: %w\n%s", s.err, s.output())
		default:
		}
		if err := sleep(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// sleep waits, or returns the context's cause.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (q *quiet) writeText(w io.Writer) error {
	const mib = 1 << 20
	_, err := fmt.Fprintf(w, `
%d shards without events on one server:

all in service                        %8.1f s after the start of the process
memory at rest                        %8.0f MiB
processor at rest, of one             %8.1f %% server, %.1f %% PostgreSQL
transactions at rest                  %8.1f per second
more intents for all                  %8.1f s after the registration
from %d shards to %d %*s%8.1f s after the start of the process, peak %.0f MiB
`, q.Shards, q.Start.Seconds(), float64(q.Memory)/mib, 100*q.ServerCPU, 100*q.PostgresCPU, q.Transactions, q.MoreIntents.Seconds(),
		q.Shards/2, q.Shards, 21-len(strconv.Itoa(q.Shards/2))-len(strconv.Itoa(q.Shards)), "", q.Reshard.Seconds(), float64(q.ReshardPeak)/mib)
	return err
}
