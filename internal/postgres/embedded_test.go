package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sethvargo/go-retry"
	"go.uber.org/goleak"

	"github.com/gatehook/gatehook/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// dataDir makes a directory that the user who runs PostgreSQL for root can reach,
// unlike t.TempDir.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gatehook-test-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func start(t *testing.T, dir string) *Embedded {
	t.Helper()
	e, err := StartEmbedded(t.Context(), EmbeddedConfig{DataDir: dir, Logger: quiet, Settings: []string{"fsync=off"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeOnce(t, e) })
	return e
}

func closeOnce(t *testing.T, e *Embedded) {
	t.Helper()
	select {
	case <-e.ended: // closed by the test
	default:
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

func open(t *testing.T, e *Embedded) *pgxpool.Pool {
	t.Helper()
	pool, err := Open(t.Context(), e.URL(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// A deep directory does not fit into a socket's path, and data survives a restart.
func TestEmbeddedKeepsItsDataInADeepDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(dataDir(t), strings.Repeat("deep/", 40))
	e := start(t, dir)
	pool := open(t, e)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE kept AS SELECT 42 AS n`); err != nil {
		t.Fatal(err)
	}
	var tcp string
	if err := pool.QueryRow(t.Context(), `SHOW listen_addresses`).Scan(&tcp); err != nil || tcp != "" {
		t.Errorf("the server listens on %q, %v", tcp, err)
	}
	pool.Close()
	sockets := e.sockets
	closeOnce(t, e)
	if _, err := os.Stat(sockets); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket's directory still exists: %v", err)
	}
	var n int
	if err := open(t, start(t, dir)).QueryRow(t.Context(), `SELECT n FROM kept`).Scan(&n); err != nil || n != 42 {
		t.Errorf("after the restart: %d, %v", n, err)
	}
}

func TestSecondServerOnOneDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	e := start(t, dir)
	_, err := StartEmbedded(t.Context(), EmbeddedConfig{DataDir: dir, Logger: quiet})
	var inUse *InUseError
	if !errors.As(err, &inUse) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), dir) {
		t.Errorf("the second server: %v", err)
	}
	closeOnce(t, e)
	start(t, dir)
}

// postmaster returns the pid of a running server.
func postmaster(t *testing.T, e *Embedded) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(e.cluster, "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestChildThatDiesIsStartedAgain(t *testing.T) {
	t.Parallel()
	e := start(t, dataDir(t))
	pool := open(t, e)
	before := postmaster(t, e)
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	err := retry.Do(t.Context(), retry.WithMaxDuration(30*time.Second, retry.NewConstant(20*time.Millisecond)), func(ctx context.Context) error {
		var pid int
		err := pool.QueryRow(ctx, `SELECT split_part(pg_read_file('postmaster.pid'), E'\n', 1)::int`).Scan(&pid)
		if err == nil && pid == before {
			err = errors.New("the old server still answers")
		}
		return retry.RetryableError(err)
	})
	if err != nil {
		t.Errorf("after the child was killed: %v", err)
	}
}

// A killed server leaves a pid file, whose pid any process may have by now. Where the
// kernel does not end PostgreSQL with us, it also leaves a running PostgreSQL.
func TestTakesOverFromAKilledServer(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	e := start(t, dir)
	closeOnce(t, e)

	pidFile := filepath.Join(e.cluster, "postmaster.pid")
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(os.Getpid())+"\n"+e.cluster+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e = start(t, dir)
	closeOnce(t, e)

	if err := e.owner.mkdir(e.sockets); err != nil {
		t.Fatal(err)
	}
	left := e.owner.command(context.WithoutCancel(t.Context()), e.bin.path("postgres"), "-D", e.cluster,
		"-c", "listen_addresses=", "-c", "unix_socket_directories="+e.sockets)
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- left.Wait() }()
	if err := e.await(t.Context()); err != nil {
		t.Fatal(err)
	}
	e = start(t, dir)
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the earlier PostgreSQL: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the earlier PostgreSQL still runs")
	}
	open(t, e)
}

func TestInitThatWasCutOffIsDoneAgain(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	scratch := filepath.Join(dir, "postgres.new")
	if err := os.MkdirAll(filepath.Join(scratch, "base"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(scratch, "PG_VERSION"), []byte("15\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, start(t, dir))
}

// Root's PostgreSQL runs as a user who can't enter a private home directory. Then the
// cluster is elsewhere, and is found again. An ordinary user's cluster is in the data
// directory.
func TestDirectoryThatTheOwnerCannotReach(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	if err := os.Chmod(home, 0o700); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(home, "checkout", ".gatehook")
	e := start(t, dir)
	inside := strings.HasPrefix(e.cluster, dir)
	if root := os.Geteuid() == 0; root == inside {
		t.Errorf("root: %v, the cluster is %s", root, e.cluster)
	}
	if !inside {
		t.Cleanup(func() {
			if err := os.RemoveAll(e.cluster); err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := open(t, e).Exec(t.Context(), `CREATE TABLE kept ()`); err != nil {
		t.Fatal(err)
	}
	closeOnce(t, e)
	if _, err := open(t, start(t, dir)).Exec(t.Context(), `SELECT FROM kept`); err != nil {
		t.Error(err)
	}
}

func TestNobodyElseCanConnect(t *testing.T) {
	t.Parallel()
	e := start(t, dataDir(t))
	info, err := os.Stat(e.sockets)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the socket's directory: %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(e.cluster); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the cluster: %v, %v", info.Mode(), err)
	}
}

func TestChooseBinaries(t *testing.T) {
	t.Parallel()
	both := []binaries{{"/17", 17}, {"/15", 15}}
	tests := []struct {
		found []binaries
		major int
		want  string
		says  string
	}{
		{both, 0, "/17", ""},
		{both, 15, "/15", ""},
		{both, 16, "", "PostgreSQL 16"},
		{nil, 0, "", "apt-get install postgresql"},
		{nil, 15, "", "apt-get install postgresql"},
	}
	for _, tt := range tests {
		got, err := chooseBinaries(tt.found, tt.major)
		if got.dir != tt.want || (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("chooseBinaries(%v, %d) = %q, %v", tt.found, tt.major, got.dir, err)
		}
	}
}

func TestOpenDoesNotShowThePassword(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for _, url := range []string{
		"postgres://user:hunter2@127.0.0.1:1/db", "postgres://user:hunter2@127.0.0.1:port/db", "user=u password='hunter2 x=y",
	} {
		_, err := Open(ctx, secret.New(url), quiet)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v", err)
		}
	}
}

// TestChildKnowsNoSecrets: every process of the database's user can read its environment.
func TestChildKnowsNoSecrets(t *testing.T) {
	t.Setenv("DISCORD_TOKEN", "hunter2")
	t.Setenv("ANYTHING_ELSE", "hunter2")
	pool, err := Open(t.Context(), start(t, dataDir(t)).URL(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var backend, postmaster int
	if err := pool.QueryRow(t.Context(), `SELECT pg_backend_pid()`).Scan(&backend); err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", backend))
	if err != nil {
		t.Skipf("this system has no /proc: %v", err)
	}
	_, after, _ := strings.Cut(string(status), ") ")
	if postmaster, err = strconv.Atoi(strings.Fields(after)[1]); err != nil {
		t.Fatal(err)
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", postmaster))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(environ), "LC_ALL=C") || strings.Contains(string(environ), "hunter2") {
		t.Errorf("the environment of PostgreSQL is %q", strings.Split(string(environ), "\x00"))
	}
}

func TestMigrateAtOnceAndAgain(t *testing.T) {
	t.Parallel()
	e := start(t, dataDir(t))
	pools := make([]*pgxpool.Pool, 8)
	for i := range pools {
		pools[i] = open(t, e)
	}
	var wg sync.WaitGroup
	for _, pool := range pools {
		wg.Go(func() {
			if err := Migrate(t.Context(), pool, quiet); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var applied, versions int
	if err := pools[0].QueryRow(t.Context(), `SELECT count(*), count(DISTINCT version_id) FROM goose_db_version`).Scan(&applied, &versions); err != nil ||
		applied != versions {
		t.Errorf("%d migrations of %d versions were applied, %v", applied, versions, err)
	}
	if err := Migrate(t.Context(), pools[0], quiet); err != nil {
		t.Errorf("Migrate again: %v", err)
	}
	if _, err := pools[0].Exec(t.Context(), `INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, true)`); err != nil {
		t.Fatal(err)
	}
	if err := Migrate(t.Context(), pools[0], quiet); err != nil {
		t.Errorf("a database with a newer schema that this build can use: %v", err)
	}
	if _, err := pools[0].Exec(t.Context(), `UPDATE schema_compatibility SET oldest_build = 999`); err != nil {
		t.Fatal(err)
	}
	if err := Migrate(t.Context(), pools[0], quiet); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("a database with a newer schema that this build can't use: %v", err)
	}
	if _, err := pgx.ParseConfig(e.URL().Reveal()); err != nil {
		t.Error(err)
	}
}
