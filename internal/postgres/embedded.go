package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sethvargo/go-retry"
	"golang.org/x/sys/unix"

	"github.com/gatehook/gatehook/internal/filelock"
	"github.com/gatehook/gatehook/internal/secret"
)

// InUseError means that another server runs the cluster of a data directory.
type InUseError struct{ Dir string }

func (e *InUseError) Error() string {
	return fmt.Sprintf("another server already runs on the data directory %s: stop it, or give this one another GATEHOOK_DATA_DIR", e.Dir)
}

// Embedded is a PostgreSQL server that runs as our child process and listens only on
// a Unix socket. Make it with StartEmbedded; Close stops it.
type Embedded struct {
	log      *slog.Logger
	lock     *filelock.File // held until Close: one server per data directory
	owner    owner
	bin      binaries
	newMajor int    // for a new cluster; 0 means any
	cluster  string // PostgreSQL's data directory
	sockets  string
	settings []string

	stop   context.CancelCauseFunc
	ended  chan struct{} // closed when the last child has ended, after exited is set
	exited error
}

// EmbeddedConfig configures an embedded server.
type EmbeddedConfig struct {
	// DataDir holds the cluster. If we are root, and the unprivileged user that then
	// runs PostgreSQL can't reach DataDir, it holds a file that says where the
	// cluster is.
	DataDir string
	Logger  *slog.Logger
	// Settings are additional settings, each name=value, for tests.
	Settings []string
	// Major is the major version for a new cluster, for tests; 0 means any.
	Major int
}

// settings are those of a small server with full durability.
var settings = []string{
	"listen_addresses=", // no TCP
	"port=5432",         // names the socket only
	"unix_socket_permissions=0700",
	"max_connections=50",
	"shared_buffers=64MB",
	"wal_compression=on",
	"max_wal_size=1GB",
	"checkpoint_timeout=15min",
	"jit=off",
	"logging_collector=off",
	"log_destination=stderr",
	"log_line_prefix=",
	// The client receives the errors of statements anyway, and their text may
	// contain parameters.
	"log_min_messages=fatal",
}

var (
	errStopped  = errors.New("the embedded PostgreSQL was stopped")
	errNotReady = errors.New("the embedded PostgreSQL does not answer")
)

const (
	startTimeout = 60 * time.Second
	stopTimeout  = 20 * time.Second
)

// StartEmbedded starts the server of a data directory and returns when it answers.
// It creates the cluster if there is none. It takes over from a server that was
// killed, whose PostgreSQL may still run or may have left its pid file. A child that
// dies is started again. The error is an *InUseError if another server uses the data
// directory.
func StartEmbedded(ctx context.Context, cfg EmbeddedConfig) (*Embedded, error) {
	dir, err := filepath.Abs(cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("start the embedded PostgreSQL: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	lock, err := filelock.Open(filepath.Join(dir, "postgres.lock"))
	if errors.Is(err, filelock.ErrInUse) {
		return nil, &InUseError{Dir: dir}
	}
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	e := &Embedded{log: cfg.Logger, lock: lock, newMajor: cfg.Major, ended: make(chan struct{})}
	if err := e.start(ctx, dir, cfg.Settings); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return e, nil
}

func (e *Embedded) start(ctx context.Context, dir string, extra []string) (err error) {
	if e.owner, err = findOwner(); err != nil {
		return err
	}
	if e.cluster, err = e.owner.clusterDir(dir); err != nil {
		return err
	}
	if err := e.findBinaries(ctx); err != nil {
		return err
	}
	if err := e.init(ctx); err != nil {
		return err
	}
	if err := e.takeOver(ctx); err != nil {
		return err
	}
	if e.sockets, err = e.owner.socketDir(dir); err != nil {
		return err
	}
	e.settings = append(append([]string{"unix_socket_directories=" + e.sockets}, settings...), extra...)

	// The child outlives ctx, because the drain still writes.
	run, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	e.stop = stop
	go e.supervise(run)
	if err := e.await(ctx); err != nil {
		return errors.Join(err, e.halt())
	}
	return nil
}

// URL returns the URL to connect to. It has no password, because only root and the
// owner of the socket's directory can enter that directory.
func (e *Embedded) URL() secret.Value {
	q := url.Values{"host": {e.sockets}, "port": {"5432"}, "user": {"gatehook"}, "dbname": {"postgres"}, "sslmode": {"disable"}}
	return secret.New("postgres:///?" + q.Encode())
}

// Close stops the server and waits for it. Close every pool first.
func (e *Embedded) Close() error {
	return errors.Join(e.halt(), os.RemoveAll(e.sockets), e.lock.Close())
}

func (e *Embedded) halt() error {
	e.stop(errStopped)
	<-e.ended
	return e.exited
}

func (e *Embedded) findBinaries(ctx context.Context) error {
	major := 0
	if b, err := os.ReadFile(filepath.Join(e.cluster, "PG_VERSION")); err == nil {
		if major, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
			return fmt.Errorf("read the version of the database in %s: %w", e.cluster, err)
		}
	} else {
		major = e.newMajor
	}
	found := findBinaries(ctx)
	if len(found) == 0 || major != 0 && !hasMajor(found, major) {
		fetched, err := fetchBinaries(ctx, e.owner.cacheDir(), major, e.log)
		if err != nil {
			if _, other := chooseBinaries(found, major); other != nil {
				err = errors.Join(other, err) // the first one says what to install
			}
			return err
		}
		found = append(found, fetched)
	}
	var err error
	e.bin, err = chooseBinaries(found, major)
	return err
}

func hasMajor(found []binaries, major int) bool {
	for _, b := range found {
		if b.major == major {
			return true
		}
	}
	return false
}

// init creates the cluster if there is none. It creates it in another directory and
// then renames that, because a half-made cluster could never be started.
func (e *Embedded) init(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(e.cluster, "PG_VERSION")); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for the database: %w", err)
	}
	scratch := e.cluster + ".new"
	if err := os.RemoveAll(scratch); err != nil {
		return fmt.Errorf("make the database: %w", err)
	}
	if err := e.owner.mkdir(scratch); err != nil {
		return fmt.Errorf("make the database: %w", err)
	}
	cmd := e.owner.command(ctx, e.bin.path("initdb"), "-D", scratch, "-U", "gatehook", "-A", "trust", "-E", "UTF8", "--locale=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make the database with %s: %w: %s", e.bin.path("initdb"), err, lastLine(out))
	}
	if err := os.Rename(scratch, e.cluster); err != nil {
		return fmt.Errorf("make the database: %w", err)
	}
	return nil
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// takeOver cleans up after a killed server. It shuts down a PostgreSQL that still runs.
// It removes a pid file whose pid belongs to another process by now, because the new
// server would mistake that process for a running PostgreSQL.
func (e *Embedded) takeOver(ctx context.Context) error {
	pidFile := filepath.Join(e.cluster, "postmaster.pid")
	b, err := os.ReadFile(pidFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for a running PostgreSQL: %w", err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err == nil && pid > 1 && runsIn(pid, e.cluster) {
		e.log.LogAttrs(ctx, slog.LevelWarn, "a PostgreSQL of an earlier run is still there, shutting it down", slog.Int("pid", pid))
		if err := unix.Kill(pid, unix.SIGINT); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("shut down the PostgreSQL of an earlier run: %w", err)
		}
		wait := retry.WithMaxDuration(stopTimeout, retry.NewConstant(20*time.Millisecond))
		if err := retry.Do(ctx, wait, func(context.Context) error {
			if !runsIn(pid, e.cluster) {
				return nil
			}
			return retry.RetryableError(fmt.Errorf("the PostgreSQL of an earlier run (pid %d) does not end: kill it", pid))
		}); err != nil {
			return err
		}
	}
	if err := os.Remove(pidFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a stale pid file: %w", err)
	}
	return nil
}

// supervise runs the child until ctx ends, and starts it again whenever it dies.
func (e *Embedded) supervise(ctx context.Context) {
	defer close(e.ended)
	backoff := newRestarts()
	// Do ends only when ctx has ended, and so returns the last child's error.
	e.exited = retry.Do(context.WithoutCancel(ctx), backoff, func(context.Context) error {
		started := time.Now()
		err := e.runChild(ctx)
		if ctx.Err() != nil {
			return err
		}
		if time.Since(started) > time.Minute {
			backoff.reset()
		}
		e.log.LogAttrs(ctx, slog.LevelError, "the embedded PostgreSQL ended, starting it again", slog.Any("error", err))
		return retry.RetryableError(fmt.Errorf("the embedded PostgreSQL ended: %w", err))
	})
}

// restarts is a backoff from 100 ms up to 5 s that can be reset.
type restarts struct{ wait time.Duration }

func newRestarts() *restarts { r := &restarts{}; r.reset(); return r }

func (r *restarts) reset() { r.wait = 100 * time.Millisecond }

// Next implements retry.Backoff.
func (r *restarts) Next() (time.Duration, bool) {
	w := r.wait
	r.wait = min(2*r.wait, 5*time.Second)
	return w, false
}

// await returns when the server answers.
func (e *Embedded) await(ctx context.Context) error {
	wait := retry.WithMaxDuration(startTimeout, retry.WithCappedDuration(200*time.Millisecond, retry.NewExponential(10*time.Millisecond)))
	return retry.Do(ctx, wait, func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, e.URL().Reveal())
		if err != nil {
			return retry.RetryableError(fmt.Errorf("%w: %w", errNotReady, err))
		}
		return conn.Close(ctx)
	})
}

// shortHash returns a few characters that identify a directory.
func shortHash(path string) string {
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:6])
}
