//go:build patroni

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// patroni is a cluster of two PostgreSQL members that Patroni keeps, with etcd, and a
// PgBouncer before each member (make test-patroni).
type patroni struct {
	t       *testing.T
	dir     string
	as      *syscall.Credential // PostgreSQL does not run as root; nil for this user
	members []*member
}

// member is a PostgreSQL with its Patroni and its PgBouncer.
type member struct {
	name               string
	pg, rest, pooled   int // ports
	patroni, pgbouncer *exec.Cmd
}

func startPatroni(t *testing.T) *patroni {
	t.Helper()
	dir, err := os.MkdirTemp("", "gatehook-test-patroni-") //nolint:usetesting // under root, PostgreSQL runs as a user that can't enter t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	p := &patroni{t: t, dir: dir}
	// The first cleanup is the last: every process has ended by then.
	t.Cleanup(func() {
		if t.Failed() {
			p.showLogs()
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if os.Geteuid() == 0 {
		p.as = credentialOf(t, "postgres")
		if err := os.Chown(dir, int(p.as.Uid), int(p.as.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	bin := directoryOf(t, "pg_controldata")
	etcd, peer := freePort(t), freePort(t)
	p.run("etcd", "etcd", "--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", local(etcd), "--advertise-client-urls", local(etcd),
		"--listen-peer-urls", local(peer), "--initial-advertise-peer-urls", local(peer), "--initial-cluster", "default="+local(peer))
	for _, name := range []string{"one", "two"} {
		m := &member{name: name, pg: freePort(t), rest: freePort(t), pooled: freePort(t)}
		p.members = append(p.members, m)
		p.write(name+".yml", fmt.Sprintf(patroniConfig, name, m.rest, etcd, filepath.Join(dir, name), m.pg, bin, dir))
		p.write(name+".ini", fmt.Sprintf(pgbouncerConfig, m.pg, m.pooled))
		m.pgbouncer = p.run("pgbouncer-"+name, "pgbouncer", filepath.Join(dir, name+".ini"))
		p.start(m)
		p.await(len(p.members))
	}
	return p
}

// patroniConfig is for a name, the port of its REST API and that of etcd, its directory, its
// port, PostgreSQL's binaries, and a directory for sockets. Patroni's defaults, but
// for synchronous_mode.
const patroniConfig = `scope: gatehook
name: %[1]s
restapi: {listen: '127.0.0.1:%[2]d', connect_address: '127.0.0.1:%[2]d'}
etcd3: {hosts: '127.0.0.1:%[3]d'}
bootstrap:
  dcs:
    synchronous_mode: true
    postgresql:
      use_pg_rewind: true
      parameters: {max_connections: 100, fsync: 'off'}
  initdb: [{encoding: UTF8}, data-checksums]
  pg_hba: [local all all trust, host all all 127.0.0.1/32 trust, host replication all 127.0.0.1/32 trust]
postgresql:
  data_dir: %[4]s
  listen: 127.0.0.1:%[5]d
  connect_address: 127.0.0.1:%[5]d
  bin_dir: %[6]s
  pgpass: %[4]s.pgpass
  parameters: {unix_socket_directories: %[7]s}
  authentication:
    superuser: {username: gatehook, password: unused}
    replication: {username: replicator, password: unused}
    rewind: {username: rewinder, password: unused}
`

// pgbouncerConfig is for the port of PostgreSQL and that of PgBouncer.
const pgbouncerConfig = `[databases]
* = host=127.0.0.1 port=%d user=gatehook
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 200
default_pool_size = 20
server_login_retry = 1
`

// urls returns how servers connect: to whichever member takes changes.
func (p *patroni) urls(pooled bool) []string {
	direct := fmt.Sprintf("postgres://gatehook@127.0.0.1:%d,127.0.0.1:%d/postgres?sslmode=disable&target_session_attrs=read-write", p.members[0].pg, p.members[1].pg)
	if !pooled {
		return []string{"DATABASE_URL=" + direct}
	}
	url := fmt.Sprintf("postgres://gatehook@127.0.0.1:%d,127.0.0.1:%d/postgres?sslmode=disable&target_session_attrs=read-write&connect_timeout=3", p.members[0].pooled, p.members[1].pooled)
	return []string{"DATABASE_URL=" + url, "DATABASE_DIRECT_URL=" + direct}
}

func local(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", port) }

func freePort(t *testing.T) int {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing was sent
	return l.Addr().(*net.TCPAddr).Port
}

func credentialOf(t *testing.T, name string) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// directoryOf returns where a program of PostgreSQL is: Debian keeps them out of PATH.
func directoryOf(t *testing.T, program string) string {
	t.Helper()
	if path, err := exec.LookPath(program); err == nil {
		return filepath.Dir(path)
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + program)
	if err != nil || len(found) == 0 {
		t.Fatalf("missing: %s; install PostgreSQL", program)
	}
	return filepath.Dir(found[len(found)-1])
}

func (p *patroni) write(name, text string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o644); err != nil { //nolint:gosec // another user reads it
		p.t.Fatal(err)
	}
}

// run starts a program, which is killed when the test ends. Its output goes to a file.
func (p *patroni) run(name, program string, args ...string) *exec.Cmd {
	p.t.Helper()
	out, err := os.OpenFile(filepath.Join(p.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer out.Close() //nolint:errcheck // the program has its own
	cmd := exec.CommandContext(context.WithoutCancel(p.t.Context()), program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.dir, out, out
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.dir, "LC_ALL=C.UTF-8", "ETCDCTL_API=3"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.as, Setpgid: true}
	if err := cmd.Start(); err != nil {
		p.t.Fatalf("missing: %s; install it and try again: %v", program, err)
	}
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill() // fails only if it has ended
		_ = cmd.Wait()         // it was killed
	})
	return cmd
}

func (p *patroni) showLogs() {
	logs, _ := filepath.Glob(filepath.Join(p.dir, "*.log")) // the pattern is right
	for _, name := range logs {
		text, err := os.ReadFile(name) //nolint:gosec // one of its own files
		if err != nil {
			p.t.Error(err)
		}
		p.t.Logf("end of %s:\n%s", filepath.Base(name), text[max(0, len(text)-4000):])
	}
}

// start starts a member.
func (p *patroni) start(m *member) {
	p.t.Helper()
	m.patroni = p.run("patroni-"+m.name, "patroni", filepath.Join(p.dir, m.name+".yml"))
	cmd := m.patroni
	p.t.Cleanup(func() { p.kill(m, cmd) })
}

// kill ends a member as a power failure does.
func (p *patroni) kill(m *member, cmd *exec.Cmd) {
	p.t.Helper()
	_ = cmd.Process.Kill() // first, or it would start PostgreSQL again
	text, err := os.ReadFile(filepath.Join(p.dir, m.name, "postmaster.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil {
		p.t.Fatalf("the process of %s: %v", m.name, err)
	}
	_ = syscall.Kill(pid, syscall.SIGKILL) // its children end with it
}

// ask calls a member's REST API (Patroni REST API) and returns the status.
func (p *patroni) ask(m *member, method, path, body string) (int, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.t.Context()), 90*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, local(m.rest)+path, bytes.NewBufferString(body))
	if err != nil {
		return 0, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close() //nolint:errcheck // not read
	return res.StatusCode, nil
}

// leader returns the member that takes changes; nil if there is none.
func (p *patroni) leader() *member {
	for _, m := range p.members {
		if status, err := p.ask(m, http.MethodGet, "/primary", ""); err == nil && status == http.StatusOK {
			return m
		}
	}
	return nil
}

// await waits until so many members are in service, each of which has every commit.
func (p *patroni) await(members int) {
	p.t.Helper()
	eventually(p.t, 2*time.Minute, "members in service", func() (bool, string) {
		in := 0
		for _, m := range p.members {
			for _, path := range []string{"/primary", "/synchronous"} {
				if status, err := p.ask(m, http.MethodGet, path, ""); err == nil && status == http.StatusOK {
					in++
				}
			}
		}
		return in == members, fmt.Sprintf("%d of %d", in, members)
	})
}

// switchover makes the other member the leader, as for maintenance.
func (p *patroni) switchover() {
	p.t.Helper()
	m := p.leader()
	if m == nil {
		p.t.Fatal("no leader")
	}
	// Patroni refuses for some seconds after a member has come back.
	eventually(p.t, time.Minute, "switched over", func() (bool, string) {
		status, err := p.ask(m, http.MethodPost, "/switchover", fmt.Sprintf(`{"leader": %q}`, m.name))
		return status == http.StatusOK, fmt.Sprint(status, err)
	})
}

// failover kills the leader, and starts it again once the other member leads.
func (p *patroni) failover() {
	p.t.Helper()
	m := p.leader()
	if m == nil {
		p.t.Fatal("no leader")
	}
	p.kill(m, m.patroni)
	eventually(p.t, 2*time.Minute, "failed over", func() (bool, string) {
		next := p.leader()
		return next != nil && next != m, fmt.Sprint(next)
	})
	p.start(m)
}

// silence measures the longest time without a delivery while f runs and for some time after.
func (l *ledger) silence(f func()) time.Duration {
	var (
		longest time.Duration
		wg      sync.WaitGroup
		over    = make(chan struct{})
	)
	wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		count, since := l.arrived(), time.Now()
		for {
			select {
			case <-tick.C:
			case <-over:
				return
			}
			if n := l.arrived(); n != count {
				count, since = n, time.Now()
			}
			longest = max(longest, time.Since(since))
		}
	})
	f()
	close(over)
	wg.Wait()
	return longest
}

func (l *ledger) arrived() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, events := range l.arrivals {
		n += len(events)
	}
	return n
}

// TestPatroni: two servers under load lose nothing when Patroni switches over and fails
// over, whether they connect to the members or to a PgBouncer before each.
func TestPatroni(t *testing.T) {
	for _, tt := range []struct {
		name   string
		pooled bool
	}{{"Direct", false}, {"PgBouncer", true}} {
		t.Run(tt.name, func(t *testing.T) {
			p := startPatroni(t)
			discord := startDiscordAs(t, discordtest.Config{Shards: manyShards})
			urls := p.urls(tt.pooled)
			w := &pair{t: t, discord: discord, a: newNamed(t, discord, "a", urls...), b: newNamed(t, discord, "b", urls...), ledger: newLedger(t)}
			w.a.start()
			awaitShards(t, discord, manyShards)
			for _, name := range []string{"MESSAGE_CREATE", "RAW_MESSAGE_CREATE"} {
				w.ledger.callback(w.a, name)
			}
			w.stop = load(t, discord, w.ledger, 5*time.Millisecond)
			w.b.start()
			w.awaitFair()
			list := decode[struct{ Data []struct{ ID string } }](t, w.a, http.MethodGet, "/listeners", "", http.StatusOK)
			for _, change := range []struct {
				name string
				make func()
			}{{"switchover", p.switchover}, {"failover", p.failover}, {"switchover back", p.switchover}} {
				var calls sync.WaitGroup
				for range 10 {
					calls.Go(func() { w.a.get("/listeners") })
				}
				calls.Wait()
				silent := w.ledger.silence(func() {
					change.make()
					p.await(2)
					w.awaitFair()
					w.flow(1000)
				})
				t.Logf("%s: no delivery for %v at most", change.name, silent.Round(100*time.Millisecond))
				// Connections of the API that were idle meanwhile are found to be of no use
				// one by one.
				failed, good := 0, 0
				eventually(t, time.Minute, "changes by the API again", func() (bool, string) {
					status, body := w.a.call(http.MethodPatch, "/listeners/"+list.Data[0].ID, `{"max_in_flight":8}`)
					if good++; status != http.StatusOK {
						good = 0
						failed++
					}
					return good == 20, body
				})
				if failed > 10 {
					t.Errorf("%d calls failed after the %s", failed, change.name)
				}
			}
			w.settle()
			for _, s := range []*process{w.a, w.b} {
				if n := s.metric("gatehook_journal_cursors_reverted_total"); n != 0 {
					t.Errorf("%s: %v shards were resumed because commits were lost, want none", s.name, n)
				}
			}
		})
	}
}
