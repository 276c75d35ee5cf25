// Package postgrestest gives tests a real PostgreSQL: one cluster per test binary,
// run by the same code as the server's own, and one migrated database per test.
// With DATABASE_URL set the databases are made on that server instead. If that goes
// through a pooler, DATABASE_DIRECT_URL is the way past it, on which they are made.
package postgrestest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/gatehook/gatehook/internal/filelock"
	"github.com/gatehook/gatehook/internal/postgres"
	"github.com/gatehook/gatehook/internal/secret"
)

// Main runs a package's tests, calls cleanups, stops the cluster if one was
// started, and fails if a goroutine is left. Call it from TestMain.
func Main(m *testing.M, cleanups ...func()) {
	code := m.Run()
	for _, f := range cleanups {
		f()
	}
	if err := shared.close(); err != nil {
		fmt.Fprintln(os.Stderr, "stop the test cluster:", err)
		code = 1
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// New connects to a migrated database that only this test uses. The database is
// dropped when the test ends. The test fails if a goroutine acquires a connection while
// it holds another.
func New(t testing.TB) *pgxpool.Pool {
	t.Helper()
	opened, err := postgres.Open(t.Context(), secret.New(URL(t)), quiet)
	if err != nil {
		t.Fatal(err)
	}
	cfg := opened.Config()
	opened.Close()
	w := &watch{holder: make(map[*pgx.Conn]hold)}
	cfg.ConnConfig.Tracer = w
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		pool.Close()
		w.report(t)
	})
	return pool
}

// Pools returns a server's pools on such a database.
func Pools(t testing.TB) *postgres.Pools {
	t.Helper()
	pools, err := postgres.OpenPools(t.Context(), secret.New(URL(t)), secret.Value{}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pools.Close)
	return pools
}

// URL returns the URL of a migrated database that only this test uses. The database
// is dropped when the test ends.
func URL(t testing.TB) string {
	t.Helper()
	return create(t, func() string { return shared.template })
}

// Direct returns the URL of a test's database without the pooler that DATABASE_URL goes
// through, if any.
func Direct(t testing.TB, database string) string {
	t.Helper()
	admin, err := shared.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	return withDatabase(admin, strings.TrimPrefix(u.Path, "/"))
}

// EmptyURL is URL for a database without a schema.
func EmptyURL(t testing.TB) string {
	t.Helper()
	return create(t, func() string { return "template0" })
}

// create makes a database from a template, which is known once the cluster has started.
func create(t testing.TB, template func() string) string {
	t.Helper()
	admin, err := shared.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	name := "gatehook_test_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	if err := execute(t.Context(), admin, `CREATE DATABASE `+name+` TEMPLATE `+template()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := execute(context.WithoutCancel(t.Context()), admin, `DROP DATABASE `+name+` WITH (FORCE)`); err != nil {
			t.Error(err)
		}
	})
	return withDatabase(shared.visitor(), name)
}

var quiet = slog.New(slog.DiscardHandler)

// shared is the cluster of this test binary, started by the first test that
// needs it.
var shared cluster

type cluster struct {
	mu       sync.Mutex
	started  bool
	err      error
	admin    string
	template string
	server   *postgres.Embedded
	dir      string
}

// visitor is how tests connect, with the name of another database.
func (c *cluster) visitor() string {
	if direct := os.Getenv("DATABASE_DIRECT_URL"); direct != "" {
		return os.Getenv("DATABASE_URL")
	}
	return c.admin
}

func (c *cluster) get(ctx context.Context) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.started {
		c.started = true
		c.err = c.start(context.WithoutCancel(ctx))
	}
	return c.admin, c.err
}

func (c *cluster) start(ctx context.Context) error {
	sweep()
	c.template = "gatehook_template_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	if c.admin = cmp.Or(os.Getenv("DATABASE_DIRECT_URL"), os.Getenv("DATABASE_URL")); c.admin == "" {
		var err error
		if c.dir, err = os.MkdirTemp("", dirPattern); err != nil {
			return err
		}
		if c.server, err = postgres.StartEmbedded(ctx, postgres.EmbeddedConfig{DataDir: c.dir, Logger: quiet, Settings: fast, Major: major()}); err != nil {
			return err
		}
		c.admin = c.server.URL().Reveal()
	}
	if err := execute(ctx, c.admin, `CREATE DATABASE `+c.template); err != nil {
		return err
	}
	pool, err := postgres.Open(ctx, secret.New(withDatabase(c.admin, c.template)), quiet)
	if err != nil {
		return err
	}
	defer pool.Close() // a template must have no connections
	return postgres.Migrate(ctx, pool, quiet)
}

func (c *cluster) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.server != nil:
		return errors.Join(c.server.Close(), os.RemoveAll(c.dir))
	case c.started && c.err == nil:
		return execute(context.Background(), c.admin, `DROP DATABASE `+c.template)
	default:
		return nil
	}
}

// major returns the major version of PostgreSQL to test with (make test-postgres); 0 means
// any.
func major() int {
	n, _ := strconv.Atoi(os.Getenv("GATEHOOK_TEST_POSTGRES"))
	return n
}

// fast are settings without durability: no test needs its cluster after a crash of the
// machine.
var fast = []string{"fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=400", "checkpoint_timeout=1h"}

// dirPattern names the directories of shared clusters only. sweep removes each such
// directory that is not locked, and a cluster from Start is not locked while it is
// stopped.
const dirPattern = "gatehook-test-cluster-"

// sweep removes the clusters of test binaries that were killed. The cluster of a
// live one is locked.
func sweep() {
	left, err := filepath.Glob(filepath.Join(os.TempDir(), dirPattern+"*"))
	if err != nil {
		return
	}
	for _, dir := range left {
		path := filepath.Join(dir, "postgres.lock")
		if _, err := os.Stat(path); err != nil {
			continue // the cluster is being made
		}
		lock, err := filelock.Open(path)
		if err != nil {
			continue // it is in use, or belongs to another user
		}
		os.RemoveAll(dir) //nolint:errcheck // the next run tries again
		lock.Close()      //nolint:errcheck // nothing was written
	}
}

// Server is a cluster that only one test uses, and that it may stop and start again.
type Server struct {
	t         testing.TB
	dir       string
	settings  []string
	pg        *postgres.Embedded
	walWriter int // the process that HoldWAL stopped, or 0
}

// Start starts a cluster that only this test uses. Settings are name=value.
func Start(t testing.TB, settings ...string) *Server {
	t.Helper()
	s := newServer(t, settings)
	s.Restart()
	return s
}

func newServer(t testing.TB, settings []string) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "gatehook-test-own-") //nolint:usetesting // a user who runs PostgreSQL for root can't reach t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, dir: dir, settings: append([]string{"max_connections=100"}, settings...)}
	t.Cleanup(func() {
		s.Stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Standby starts a hot standby of the cluster, which reads its log from where conninfo
// says, with these settings. The cluster is stopped meanwhile, and started again.
func (s *Server) Standby(conninfo string, settings ...string) *Server {
	s.t.Helper()
	s.Stop()
	standby := newServer(s.t, append(settings, "primary_conninfo="+conninfo))
	// With its owners: PostgreSQL wants to own its files.
	if out, err := exec.CommandContext(s.t.Context(), "cp", "-a", s.dir+"/.", standby.dir).CombinedOutput(); err != nil {
		s.t.Fatalf("copy the cluster: %v: %s", err, out)
	}
	clusters, err := filepath.Glob(filepath.Join(standby.dir, "*", "PG_VERSION"))
	if err != nil || len(clusters) != 1 {
		s.t.Fatalf("find the copy of the cluster: %v, %v", clusters, err)
	}
	// An empty file with the owner of another one.
	signal := filepath.Join(filepath.Dir(clusters[0]), "standby.signal")
	if out, err := exec.CommandContext(s.t.Context(), "cp", "-a", clusters[0], signal).CombinedOutput(); err != nil {
		s.t.Fatalf("make a standby: %v: %s", err, out)
	}
	s.Restart()
	standby.Restart()
	return standby
}

// Promote makes a standby a primary.
func (s *Server) Promote() {
	s.t.Helper()
	if err := execute(s.t.Context(), s.URL(), `SELECT pg_promote()`); err != nil {
		s.t.Fatalf("promote the standby: %v", err)
	}
}

// URL returns the URL to connect to. It is the same after a restart.
func (s *Server) URL() string { return s.pg.URL().Reveal() }

// Pool connects to the cluster and migrates it. The caller closes the pool.
func (s *Server) Pool() *pgxpool.Pool {
	s.t.Helper()
	pool, err := postgres.Open(s.t.Context(), s.pg.URL(), quiet)
	if err == nil {
		err = postgres.Migrate(s.t.Context(), pool, quiet)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return pool
}

// Stop shuts the cluster down. It does nothing if the cluster is stopped.
func (s *Server) Stop() {
	s.t.Helper()
	if s.pg == nil {
		return
	}
	if err := s.pg.Close(); err != nil {
		s.t.Errorf("stop PostgreSQL: %v", err)
	}
	s.pg = nil
}

// HoldWAL stops the WAL writer, so that commits with synchronous_commit=off stay in memory,
// and a Crash loses them. Otherwise each full page of the log wakes the WAL writer, whatever
// wal_writer_delay is: a crash would lose at most the last 8 KiB, and often no commit.
func (s *Server) HoldWAL() {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.URL())
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close(s.t.Context()) //nolint:errcheck // nothing is lost with it
	const find = `SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'`
	if err := conn.QueryRow(s.t.Context(), find).Scan(&s.walWriter); err != nil {
		s.t.Fatalf("find the WAL writer: %v", err)
	}
	if err := syscall.Kill(s.walWriter, syscall.SIGSTOP); err != nil {
		s.t.Fatalf("stop the WAL writer: %v", err)
	}
	s.t.Cleanup(func() {
		if s.walWriter != 0 { // the cluster could not end without it
			_ = syscall.Kill(s.walWriter, syscall.SIGCONT)
		}
	})
}

// Crash kills the cluster, as a power failure does: what is not on disk is lost. It is
// started again by itself.
func (s *Server) Crash() {
	s.t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, "*", "postmaster.pid"))
	if err != nil || len(files) != 1 {
		s.t.Fatalf("find the process of the cluster: %v, %v", files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		s.t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil {
		s.t.Fatalf("%s: %v", files[0], err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil { // its children end with it
		s.t.Fatalf("kill PostgreSQL: %v", err)
	}
	if s.walWriter != 0 { // it is stopped, and does not notice
		if err := syscall.Kill(s.walWriter, syscall.SIGKILL); err != nil {
			s.t.Errorf("kill the WAL writer: %v", err)
		}
		s.walWriter = 0
	}
}

// Restart starts a stopped cluster with its data.
func (s *Server) Restart() {
	s.t.Helper()
	pg, err := postgres.StartEmbedded(context.WithoutCancel(s.t.Context()),
		postgres.EmbeddedConfig{DataDir: s.dir, Logger: quiet, Settings: s.settings, Major: major()})
	if err != nil {
		s.t.Fatalf("start PostgreSQL: %v", err)
	}
	s.pg = pg
}

func execute(ctx context.Context, url, sql string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connect to the test cluster: %w", err)
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}

// withDatabase returns a URL with another database.
func withDatabase(raw, name string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw // the next connection fails and says why
	}
	q := u.Query()
	if q.Has("dbname") {
		q.Set("dbname", name)
		u.RawQuery = q.Encode()
		return u.String()
	}
	u.Path = "/" + name
	return u.String()
}
