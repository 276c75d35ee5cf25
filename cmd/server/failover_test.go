package main

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// replicated is a primary and a standby, each behind a proxy, as is the replication
// between them.
type replicated struct {
	t                    *testing.T
	primary, standby     *postgrestest.Server
	toPrimary, toStandby *proxy
	replication          *proxy
	url                  string // of both: whichever can be written to
}

// startReplicated starts both. If sync is true, no transaction ends before the standby
// has it.
func startReplicated(t *testing.T, sync bool) *replicated {
	t.Helper()
	var settings []string
	if sync {
		settings = append(settings, "synchronous_standby_names=standby")
	}
	r := &replicated{t: t, primary: postgrestest.Start(t, settings...)}
	r.replication, _ = behindProxy(t, r.primary.URL())
	r.standby = r.primary.Standby(fmt.Sprintf("host=127.0.0.1 port=%d user=gatehook application_name=standby sslmode=disable", portOf(r.replication)))
	r.toPrimary, r.url = behindProxy(t, r.primary.URL())
	r.toStandby, _ = behindProxy(t, r.standby.URL())
	cfg, err := pgconn.ParseConfig(r.url)
	if err != nil {
		t.Fatal(err)
	}
	r.url = fmt.Sprintf("postgres://%s@127.0.0.1:%d,127.0.0.1:%d/%s?sslmode=disable&target_session_attrs=read-write",
		cfg.User, portOf(r.toPrimary), portOf(r.toStandby), cfg.Database)
	eventually(t, time.Minute, "streaming", func() (bool, string) {
		n, err := r.count(`SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'`)
		return n == 1, fmt.Sprint(n, err)
	})
	return r
}

func portOf(p *proxy) int { return p.listener.Addr().(*net.TCPAddr).Port }

func (r *replicated) count(sql string) (n int64, err error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, r.primary.URL())
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is lost with it
	return n, conn.QueryRow(ctx, sql).Scan(&n)
}

// fail cuts the primary off from everybody, and makes the standby a primary.
func (r *replicated) fail() {
	r.t.Helper()
	r.replication.away(true)
	r.toPrimary.away(true)
	r.standby.Promote()
}

// failover starts two servers on a replicated database, lets it fail over under load,
// and checks that nothing was lost. Before that, lag is how long the standby gets nothing.
func failover(t *testing.T, sync bool, lag time.Duration) *pair {
	t.Helper()
	r := startReplicated(t, sync)
	discord := startDiscordAs(t, discordtest.Config{Shards: manyShards})
	url := "DATABASE_URL=" + r.url
	w := &pair{t: t, discord: discord, a: newNamed(t, discord, "a", url), b: newNamed(t, discord, "b", url), ledger: newLedger(t), renumbers: lag > 0}
	w.a.start()
	awaitShards(t, discord, manyShards)
	for _, name := range []string{"MESSAGE_CREATE", "RAW_MESSAGE_CREATE"} {
		w.ledger.callback(w.a, name)
	}
	w.stop = load(t, discord, w.ledger, 5*time.Millisecond)
	w.b.start()
	w.awaitFair()
	w.flow(400)
	if lag > 0 {
		r.replication.stall(true)
		w.flow(int(lag / (5 * time.Millisecond)))
	}
	r.fail()
	w.flow(400)
	if lag > 0 {
		r.replication.stall(false) // its connections are cut
	}
	w.awaitFair()
	w.settle()
	return w
}

// TestFailoverSynchronous: a standby that has every commit becomes the primary. Nothing is
// lost, and only what a crash repeats comes twice.
func TestFailoverSynchronous(t *testing.T) {
	t.Parallel()
	w := failover(t, true, 0)
	for _, p := range []*process{w.a, w.b} {
		if n := p.metric("gatehook_journal_cursors_reverted_total"); n != 0 {
			t.Errorf("%s: %v shards were resumed because commits were lost, want none", p.name, n)
		}
	}
}

// TestFailoverAsynchronous: a standby without the commits of the last seconds becomes the
// primary. Their events are resumed from Discord.
func TestFailoverAsynchronous(t *testing.T) {
	t.Parallel()
	w := failover(t, false, 2*time.Second)
	reverted := 0.0
	for _, p := range []*process{w.a, w.b} {
		reverted += p.metric("gatehook_journal_cursors_reverted_total")
	}
	if reverted == 0 {
		t.Error("no shard was resumed: the standby had every commit")
	}
}

// TestDatabaseCrashesWithoutSynchronousCommit: PostgreSQL confirms commits before they are
// on disk, and loses some in a crash. Their events are resumed from Discord.
func TestDatabaseCrashesWithoutSynchronousCommit(t *testing.T) {
	t.Parallel()
	// If the buffers were full, PostgreSQL would write them without the WAL writer.
	db := postgrestest.Start(t, "synchronous_commit=off", "wal_buffers=16MB")
	discord := startDiscordAs(t, discordtest.Config{Shards: manyShards})
	url := "DATABASE_URL=" + db.URL()
	w := &pair{t: t, discord: discord, a: newNamed(t, discord, "a", url), b: newNamed(t, discord, "b", url), ledger: newLedger(t), renumbers: true}
	w.a.start()
	awaitShards(t, discord, manyShards)
	for _, name := range []string{"MESSAGE_CREATE", "RAW_MESSAGE_CREATE"} {
		w.ledger.callback(w.a, name)
	}
	w.stop = load(t, discord, w.ledger, 5*time.Millisecond)
	w.b.start()
	w.awaitFair()
	db.HoldWAL()
	w.flow(400)
	db.Crash()
	w.flow(400)
	w.awaitFair()
	w.settle()
	if n := w.a.metric("gatehook_journal_cursors_reverted_total") + w.b.metric("gatehook_journal_cursors_reverted_total"); n == 0 {
		t.Error("no shard was resumed: no commit was lost")
	}
}
