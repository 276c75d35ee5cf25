package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
	"github.com/gatehook/gatehook/internal/secret"
)

func TestMain(m *testing.M) { postgrestest.Main(m, removeBinary) }

const testKey = "gk_key-of-the-tests"

// testEncryptionKey is 32 bytes in hex.
const testEncryptionKey = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

// binary builds the server once for all tests.
var binary = sync.OnceValues(func() (string, error) {
	path := binaryPath()
	out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

func binaryPath() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("gatehook-test-server-%d", os.Getpid()))
}

func removeBinary() {
	if err := os.Remove(binaryPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		fmt.Fprintln(os.Stderr, err)
	}
}

// process is the real server as a child process. It can be started, killed and
// started again with the same environment.
type process struct {
	t       *testing.T
	discord *discordtest.Server
	name    string
	path    string   // of another binary; "" for that of this source
	wrap    []string // a command that runs the binary, which is its last argument
	env     []string
	lives   int
	cmd     *exec.Cmd
	url     string

	mu  sync.Mutex   // guards log
	log bytes.Buffer // the output of all its lives

	done chan struct{} // closed when the present life has ended, after err is set
	err  error
}

// newProcess prepares a server with its own data directory. Variables in env
// replace the defaults.
func newProcess(t *testing.T, discord *discordtest.Server, env ...string) *process {
	t.Helper()
	return newNamed(t, discord, "server", env...)
}

// newNamed is like newProcess, for one of several servers.
func newNamed(t *testing.T, discord *discordtest.Server, name string, env ...string) *process {
	t.Helper()
	// Not t.TempDir: under root, PostgreSQL runs as a user that can't enter it.
	dir, err := os.MkdirTemp("", "gatehook-test-data-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	if pooler := os.Getenv("DATABASE_URL"); os.Getenv("DATABASE_DIRECT_URL") != "" { // make test-pgbouncer
		at := slices.IndexFunc(env, func(s string) bool { return strings.HasPrefix(s, "DATABASE_URL=") })
		if at < 0 {
			env, at = append([]string{"DATABASE_URL=" + postgrestest.URL(t)}, env...), 0
		}
		_, url, _ := strings.Cut(env[at], "=")
		// A database that a test has started itself is not behind the pooler.
		if strings.HasPrefix(url, strings.TrimSuffix(pooler, "/postgres")) {
			env = append([]string{"DATABASE_DIRECT_URL=" + postgrestest.Direct(t, url)}, env...)
		}
	}
	kept := t.ArtifactDir() // called now: the first call in a cleanup would remove the directory too early
	p := &process{t: t, discord: discord, name: name, env: append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.TempDir(),
		"DISCORD_API_URL=" + discord.APIURL(),
		"GATEHOOK_DATA_DIR=" + dir, "GATEHOOK_ADDR=127.0.0.1:0", "GATEHOOK_API_KEY=" + testKey,
		"GATEHOOK_ALLOW_TARGETS=127.0.0.0/8", "GATEHOOK_INTENTS=53608447", "GATEHOOK_LOG_LEVEL=debug",
		"GATEHOOK_ENCRYPTION_KEY=" + testEncryptionKey,
		"GATEHOOK_RETRY_SCHEDULE=200ms,200ms,500ms,1s,1s,2s,2s",
	}, env...)}
	t.Cleanup(func() {
		if p.cmd != nil {
			p.signal(syscall.SIGCONT) // a paused process does not handle SIGTERM
		}
		p.stop(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("last lines of %s:\n%s", p.name, p.lastLines(60))
			// -artifacts keeps this file.
			if err := os.WriteFile(filepath.Join(kept, p.name+".log"), []byte(p.output()), 0o600); err != nil {
				t.Error(err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return p
}

// client is the simulated Discord's name for the server in its present life.
func (p *process) client() string { return fmt.Sprintf("%s-%d", p.name, p.lives) }

// start starts the server and returns when its API answers.
func (p *process) start() {
	p.t.Helper()
	path := p.path
	if path == "" {
		var err error
		if path, err = binary(); err != nil {
			p.t.Fatal(err)
		}
	}
	p.lives++
	command := append(slices.Clip(p.wrap), path)
	p.cmd = exec.CommandContext(context.WithoutCancel(p.t.Context()), command[0], command[1:]...)
	p.cmd.Env, p.cmd.Dir = append(slices.Clip(p.env), "DISCORD_TOKEN=Bot "+p.discord.TokenOf(p.client())), os.TempDir()
	p.cmd.Stdout = p
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	ready := make(chan string, 1)
	p.done = make(chan struct{})
	go func() {
		defer close(p.done)
		p.read(stderr, ready)
		p.err = p.cmd.Wait()
	}()
	select {
	case p.url = <-ready:
	case <-p.done:
		p.t.Fatalf("the server ended: %v\n%s", p.err, p.lastLines(20))
	case <-time.After(90 * time.Second):
		p.t.Fatalf("the server did not start\n%s", p.lastLines(20))
	}
}

func (p *process) read(stderr io.Reader, ready chan<- string) {
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		_, _ = p.Write(append(slices.Clip(lines.Bytes()), '\n'))
		var line struct{ Msg, URL string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "the API answers" {
			ready <- line.URL
		}
	}
}

// Write implements io.Writer, for both outputs of the process.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

// stop sends a signal, waits for the process to end, and returns its exit status.
func (p *process) stop(signal syscall.Signal) int {
	p.t.Helper()
	if p.cmd == nil {
		return 0
	}
	p.signal(signal)
	select {
	case <-p.done:
	case <-time.After(60 * time.Second):
		p.t.Errorf("the server did not end\n%s", p.lastLines(30))
		return -1
	}
	return p.cmd.ProcessState.ExitCode()
}

// drain stops the server as a deploy does.
func (p *process) drain() {
	p.t.Helper()
	if code := p.stop(syscall.SIGTERM); code != 0 {
		p.t.Errorf("server %s: exit status %d\n%s", p.name, code, p.lastLines(30))
	}
}

// finish drains the server for the last time, and checks that it never panicked.
func (p *process) finish() {
	p.t.Helper()
	p.drain()
	if strings.Contains(p.output(), "panic") {
		p.t.Errorf("server %s panicked", p.name)
	}
}

// alive fails the test if the server has ended by itself.
func (p *process) alive() {
	p.t.Helper()
	select {
	case <-p.done:
		p.t.Fatalf("server %s ended by itself: %v", p.name, p.err)
	default:
	}
}

func (p *process) signal(signal syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Error(err)
	}
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

func (p *process) lastLines(n int) string {
	lines := strings.Split(p.output(), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// get makes a GET call to the API.
func (p *process) get(path string) (status int, answer string) {
	p.t.Helper()
	return p.call(http.MethodGet, path, "")
}

// metric returns the sum of a metric's series.
func (p *process) metric(name string) (sum float64) {
	p.t.Helper()
	_, text := p.get("/metrics")
	for _, m := range regexp.MustCompile(`(?m)^`+name+`(?:\{.*\})? (\S+)$`).FindAllStringSubmatch(text, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			p.t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// call calls the API, which must answer.
func (p *process) call(method, path, body string) (status int, answer string) {
	p.t.Helper()
	status, answer, err := p.try(method, path, body)
	if err != nil {
		p.t.Fatal(err)
	}
	return status, answer
}

// ask is like get, for a server that may be down or paused.
func (p *process) ask(path string) (status int, answer string, err error) {
	return p.try(http.MethodGet, path, "")
}

func (p *process) try(method, path, body string) (status int, answer string, err error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, p.url+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+testKey)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// ledger compares the events sent with the deliveries received.
type ledger struct {
	t *testing.T

	mu       sync.Mutex                     // guards the fields below
	expected map[string]sent                // by event id
	arrivals map[string]map[string]*arrival // by callback, by event id
	losses   []loss
	changed  chan struct{}
	secrets  []string
}

// sent is the place of an event that was sent.
type sent struct {
	shard int
	discordtest.Sent
}

// arrival counts the arrivals of an event at one callback.
type arrival struct {
	times int
	id    string // the first webhook-id
	ids   int    // how many different webhook-ids there were
}

// loss holds the fields of GATEHOOK_SESSION_LOST that are checked.
type loss struct {
	Shard   int    `json:"shard_id"`
	Session string `json:"session_id"`
	After   int64  `json:"after_seq"`
	Next    string `json:"next_session_id"`
	NextSeq int64  `json:"next_seq"`
}

func newLedger(t *testing.T) *ledger {
	t.Helper()
	return &ledger{t: t, expected: map[string]sent{}, arrivals: map[string]map[string]*arrival{}, changed: make(chan struct{}, 1)}
}

// callback registers a listener and records its deliveries.
func (l *ledger) callback(p *process, eventName string) {
	l.t.Helper()
	l.callbackBehind(p, eventName, func(h http.Handler) http.Handler { return h })
}

// callbackBehind is like callback, with another handler in front of the receiver.
func (l *ledger) callbackBehind(p *process, eventName string, front func(http.Handler) http.Handler) {
	l.t.Helper()
	arrivals := map[string]*arrival{}
	l.mu.Lock()
	l.arrivals[eventName] = arrivals
	l.mu.Unlock()
	l.receive(p, eventName, front, func(r received) {
		if r.seq == 0 {
			return
		}
		a := arrivals[r.eventID]
		if a == nil {
			a = &arrival{id: r.id, ids: 1}
			arrivals[r.eventID] = a
		}
		a.times++
		if a.id != r.id {
			a.ids++
		}
	})
}

// recordLosses registers a listener and records the reported losses.
func (l *ledger) recordLosses(p *process, front func(http.Handler) http.Handler) {
	l.t.Helper()
	l.receive(p, "GATEHOOK_SESSION_LOST", front, func(r received) {
		var reported loss
		if err := json.Unmarshal(r.data, &reported); err != nil {
			l.t.Errorf("GATEHOOK_SESSION_LOST: %v: %s", err, r.data)
		}
		l.losses = append(l.losses, reported)
	})
}

// reportedLosses returns the losses reported so far.
func (l *ledger) reportedLosses() []loss {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.losses)
}

// receive registers a listener, and calls on for its deliveries with l.mu held.
func (l *ledger) receive(p *process, eventName string, front func(http.Handler) http.Handler, on func(received)) {
	l.t.Helper()
	r := &receiver{on: func(r received) {
		l.mu.Lock()
		defer l.mu.Unlock()
		on(r)
		select {
		case l.changed <- struct{}{}:
		default:
		}
	}}
	srv := httptest.NewServer(front(r))
	l.t.Cleanup(func() {
		srv.Close()
		for _, err := range r.problems() {
			l.t.Error(err)
		}
	})
	l.register(p, eventName, srv.URL, r)
}

func (l *ledger) register(p *process, eventName, url string, r *receiver) {
	l.t.Helper()
	signing, err := register(l.t.Context(), p.url, secret.New(testKey), eventName, url)
	if err != nil {
		l.t.Fatal(err)
	}
	l.secrets = append(l.secrets, signing)
	if err := r.trust(signing); err != nil {
		l.t.Fatal(err)
	}
}

// sent records an event under the id that it must have.
func (l *ledger) sent(shard event.Shard, s discordtest.Sent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expected[event.DispatchID(1001, s.Session, shard, s.Seq).String()] = sent{shard.ID, s}
}

// await waits until every event has arrived at every callback.
func (l *ledger) await(timeout time.Duration) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), timeout)
	defer cancel()
	for {
		missing := l.missing()
		if missing == 0 {
			return
		}
		select {
		case <-l.changed:
		case <-ctx.Done():
			l.t.Fatalf("%d deliveries are missing", missing)
		}
	}
}

func (l *ledger) missing() (missing int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, arrivals := range l.arrivals {
		if len(arrivals) >= len(l.expected) {
			for id := range l.expected {
				if arrivals[id] == nil {
					missing++
				}
			}
			continue
		}
		missing += len(l.expected) - len(arrivals)
	}
	return missing
}

// twice returns how many deliveries arrived more than once.
func (l *ledger) twice() (twice int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, arrivals := range l.arrivals {
		for _, a := range arrivals {
			if a.times > 1 {
				twice++
			}
		}
	}
	return twice
}

// oneID fails the test if an event arrived at a callback with two webhook-ids: such
// an event was stored twice, and no receiver could recognize the repetition.
func (l *ledger) oneID() {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, arrivals := range l.arrivals {
		for id, a := range arrivals {
			if a.ids > 1 {
				s := l.expected[id]
				l.t.Errorf("%s: event %s (shard %d, session %s, seq %d) arrived with %d webhook-ids", name, id, s.shard, s.Session, s.Seq, a.ids)
			}
		}
	}
}

// noSecrets fails the test if the output of the process contains a secret.
func (l *ledger) noSecrets(p *process, more ...string) {
	l.t.Helper()
	out := p.output()
	for _, s := range append(append(more, testKey), l.secrets...) {
		if strings.Contains(out, s) || strings.Contains(out, strings.TrimPrefix(s, "whsec_")) {
			l.t.Errorf("the log contains the secret %.8s…", s)
		}
	}
}
