package postgres

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/secret"
)

// The pools together, with the connection that hears of changed listeners, never open
// more connections than the URL allows, and each purpose has one.
func TestPoolsSplitWhatTheURLAllows(t *testing.T) {
	t.Parallel()
	for total, want := range map[int32]shares{
		minTotal:     {1, 1, 1, 1},
		6:            {1, 1, 2, 1},
		7:            {1, 1, 2, 2},
		spareFrom:    {2, 2, 2, 1},
		10:           {2, 2, 3, 2},
		defaultTotal: {2, 2, 4, 3},
		40:           {2, 2, 18, 17},
	} {
		got := split(total)
		if got != want {
			t.Errorf("%d connections are split into %+v, want %+v", total, got, want)
		}
		if sum := got.heartbeat + got.journal + got.engine + got.api + 1; sum != total {
			t.Errorf("of %d connections %d may be opened", total, sum)
		}
	}
	for url, want := range map[string]int32{
		"postgres://localhost/gatehook":                                         defaultTotal,
		"postgres://localhost/gatehook?pool_max_conns=30":                       30,
		"host=localhost dbname=gatehook pool_max_conns=7 pool_min_idle_conns=9": 7,
	} {
		if got, err := totalOf(secret.New(url)); err != nil || got != want {
			t.Errorf("%s allows %d connections (%v), want %d", url, got, err, want)
		}
		pools, err := newPools(t.Context(), secret.New(url), secret.Value{}, want, false, false)
		if err != nil {
			t.Fatal(err)
		}
		if got := pools.Engine.Config().MaxConns; got != split(want).engine {
			t.Errorf("%s: the engine has %d", url, got)
		}
		pools.Close()
	}
	if _, err := OpenPools(t.Context(), secret.New("postgres://u:pa ss@h:x/"), secret.Value{}, quiet); !errors.Is(err, errURL) {
		t.Errorf("a URL that can't be parsed: %v", err)
	}
	if _, err := OpenPools(t.Context(), secret.New("postgres://localhost/gatehook?pool_max_conns=4"), secret.Value{}, quiet); err == nil || !strings.Contains(err.Error(), "at least 5") {
		t.Errorf("too few connections: %v", err)
	}
}

// Every connection of a process has the same name, whatever it is for, so an heir finds
// them all by it. Every pool bounds what its connections wait for.
func TestPoolsSetTheSameSession(t *testing.T) {
	t.Parallel()
	db := start(t, dataDir(t))
	for url, want := range map[string]string{
		db.URL().Reveal(): "gatehook " + process,
		db.URL().Reveal() + "&application_name=" + strings.Repeat("long", 20): strings.Repeat("long", 20)[:maxApplicationName-1-len(process)] + " " + process,
	} {
		pools, err := OpenPools(t.Context(), secret.New(url), secret.Value{}, quiet)
		if err != nil {
			t.Fatal(err)
		}
		defer pools.Close()
		one, err := Open(t.Context(), secret.New(url), quiet)
		if err != nil {
			t.Fatal(err)
		}
		defer one.Close()
		for _, pool := range append(pools.named(), namedPool{one, "shared"}) {
			for setting, want := range map[string]string{
				"application_name": want, "lock_timeout": "7s", "idle_in_transaction_session_timeout": "6s",
			} {
				var got string
				if err := pool.QueryRow(t.Context(), `SELECT current_setting($1)`, setting).Scan(&got); err != nil {
					t.Fatal(err)
				}
				if got != want {
					t.Errorf("%s: %s is %q, want %q", pool.name, setting, got, want)
				}
			}
		}
	}
}

// The log says at the start if the role's connection limit is too low.
func TestLimitOfARole(t *testing.T) {
	t.Parallel()
	url := start(t, dataDir(t)).URL()
	owner, err := Open(t.Context(), url, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	if _, err := owner.Exec(t.Context(), `CREATE ROLE few LOGIN CONNECTION LIMIT 7`); err != nil {
		t.Fatal(err)
	}
	for extra, told := range map[string]bool{"": true, "&pool_max_conns=7": false} {
		var logged strings.Builder
		pools, err := OpenPools(t.Context(), secret.New(strings.Replace(url.Reveal(), "user=gatehook", "user=few", 1)+extra), secret.Value{}, slog.New(slog.NewTextHandler(&logged, nil)))
		if err != nil {
			t.Fatal(err)
		}
		pools.Close()
		if got := strings.Contains(logged.String(), "role=few connection_limit=7 needed_for_each_server=12"); got != told {
			t.Errorf("with %q, logged: %s", extra, &logged)
		}
	}
}

// The context decides where a statement goes: to its transaction, else to the pool of its
// purpose, else to the package's own.
func TestContextSaysWhereStatementsGo(t *testing.T) {
	t.Parallel()
	pools, err := OpenPools(t.Context(), start(t, dataDir(t)).URL(), secret.Value{}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer pools.Close()
	db, ctx := On(pools.Engine), WithPool(t.Context(), pools.API)
	if WithPool(ctx, nil) != ctx {
		t.Error("no pool is not the same as the one before")
	}
	before := pools.Engine.Stat().AcquireCount() // to look at the role
	used := func() [2]int64 {
		return [2]int64{pools.Engine.Stat().AcquireCount() - before, pools.API.Stat().AcquireCount()}
	}
	for _, step := range []struct {
		name string
		do   func() error
		want [2]int64
	}{
		{"the package's own", func() error { _, err := db.Exec(t.Context(), `SELECT 1`); return err }, [2]int64{1, 0}},
		{"the purpose's", func() error { _, err := db.Exec(ctx, `SELECT 1`); return err }, [2]int64{1, 1}},
		{"the transaction's", func() error {
			return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
				ctx := WithTx(ctx, tx)
				var one, txid, inner int64
				var b pgx.Batch
				b.Queue(`SELECT 1`)
				rows, queryErr := db.Query(ctx, `SELECT 1`)
				if queryErr == nil {
					rows.Close()
				}
				return errors.Join(
					queryErr, db.QueryRow(ctx, `SELECT 1`).Scan(&one), db.SendBatch(ctx, &b).Close(),
					tx.QueryRow(ctx, `SELECT txid_current()`).Scan(&txid),
					pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error { return tx.QueryRow(ctx, `SELECT txid_current()`).Scan(&inner) }),
					map[bool]error{false: errors.New("another transaction was begun")}[txid == inner])
			})
		}, [2]int64{1, 2}},
	} {
		if err := step.do(); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		if got := used(); got != step.want {
			t.Errorf("%s: the engine's and the API's pool were used %v times, want %v", step.name, got, step.want)
		}
	}
}
