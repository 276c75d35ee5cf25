//go:build examples

package examples_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

const (
	apiKey   = "gk_key-of-the-tests"
	botToken = "token-of-the-examples"
	timeout  = 45 * time.Second // for every wait
)

func newSecret() string {
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		panic(err) // documented never to happen
	}
	return "whsec_" + base64.StdEncoding.EncodeToString(b)
}

// process starts a program and waits for a line that contains mark. It returns the
// word after mark. The program is stopped at the end of the test.
func process(t *testing.T, dir string, args, env []string, mark string) string {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.TempDir()}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt from the terminal must reach only the test
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close() //nolint:errcheck // the child has its own copy
	ready, ended := make(chan string, 1), make(chan struct{})
	var log bytes.Buffer // read only after ended is closed
	go func() {
		defer close(ended)
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			log.Write(append(lines.Bytes(), '\n'))
			if _, after, ok := strings.Cut(lines.Text(), mark); ok && len(ready) == 0 {
				ready <- strings.Fields(after)[0]
			}
		}
		r.Close() //nolint:errcheck // only read
	}()
	t.Cleanup(func() {
		kill(t, -cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Errorf("%v did not end", args)
			kill(t, -cmd.Process.Pid, syscall.SIGKILL)
			<-ended
		}
		cmd.Wait() //nolint:errcheck // ended by a signal
		if t.Failed() {
			t.Logf("output of %v:\n%s", args, log.Bytes())
		}
	})
	select {
	case after := <-ready:
		return after
	case <-ended:
		t.Fatalf("%v ended", args)
	case <-time.After(timeout):
		t.Fatalf("%v is not ready after %v", args, timeout)
	}
	return ""
}

func kill(t *testing.T, pid int, signal syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Error(err)
	}
}

// start runs an example and returns its URL.
func start(t *testing.T, run []string, env ...string) string {
	t.Helper()
	return process(t, ".", run, append(env, "DISCORD_TOKEN="+botToken, "PORT=0"), "istening on ")
}

// server is the real server, between a simulated Discord and the examples.
type server struct {
	url     string
	discord *discordtest.Server
	rest    *rest
	ids     atomic.Int64
}

func startServer(t *testing.T) *server {
	t.Helper()
	discord, err := discordtest.Start(discordtest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(discord.Close)
	bin := filepath.Join(t.TempDir(), "gatehook")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "../cmd/server").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s := &server{discord: discord, rest: newREST(t)}
	s.ids.Store(1_300_000_000_000_000_000)
	started := process(t, os.TempDir(), []string{bin}, []string{
		"DISCORD_TOKEN=" + discord.Token(), "DISCORD_API_URL=" + discord.APIURL(), "DATABASE_URL=" + postgrestest.URL(t),
		"GATEHOOK_DATA_DIR=" + t.TempDir(), "GATEHOOK_ADDR=127.0.0.1:0", "GATEHOOK_API_KEY=" + apiKey,
		"GATEHOOK_ALLOW_TARGETS=127.0.0.0/8", "GATEHOOK_INTENTS=53608447", "GATEHOOK_LOG_FORMAT=json",
		"GATEHOOK_RETRY_SCHEDULE=50ms,50ms,50ms,200ms,1s,2s",
	}, `"msg":"the API answers","url":"`)
	s.url, _, _ = strings.Cut(started, `"`)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	if _, err := discord.WaitReady(ctx, 0); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *server) id() string { return fmt.Sprint(s.ids.Add(1)) }

// newChannel returns a channel that no other example listens to.
func (s *server) newChannel() string { return s.id() }

// say dispatches a message in a channel, and returns its id.
func (s *server) say(t *testing.T, channel, content string, bot bool) string {
	t.Helper()
	id := s.id()
	data := fmt.Sprintf(`{"id":%q,"channel_id":%q,"guild_id":"1300000000000000100","author":{"id":"1300000000000001000","username":"ada","discriminator":"0","avatar":null,"bot":%t},"content":%q,"timestamp":"2026-01-01T00:00:00.000000+00:00","edited_timestamp":null,"tts":false,"mention_everyone":false,"mentions":[],"mention_roles":[],"attachments":[],"embeds":[],"pinned":false,"type":0}`,
		id, channel, bot, content)
	if _, err := s.discord.Dispatch(0, "MESSAGE_CREATE", []byte(data)); err != nil {
		t.Fatal(err)
	}
	return id
}

// register registers a listener.
func (s *server) register(t *testing.T, listener string) {
	t.Helper()
	if status, body := s.call(t, http.MethodPost, "/listeners", listener); status != http.StatusCreated {
		t.Fatalf("register %s: %d %s", listener, status, body)
	}
}

// publicKey returns the key that verifies deliveries in the format discord.
func (s *server) publicKey(t *testing.T) string {
	t.Helper()
	var keys struct {
		Data []struct {
			PublicKey string `json:"public_key"`
		}
	}
	status, body := s.call(t, http.MethodGet, "/signing-keys", "")
	if err := json.Unmarshal([]byte(body), &keys); err != nil || len(keys.Data) != 1 {
		t.Fatalf("read the signing keys: %d %s", status, body)
	}
	return keys.Data[0].PublicKey
}

func (s *server) call(t *testing.T, method, path, body string) (status int, answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Authorization": {"Bearer " + apiKey}, "Content-Type": {"application/json"}}
	return do(t, req)
}

// post sends a delivery by hand and returns the status of the answer.
func post(ctx context.Context, t *testing.T, url string, header http.Header, body []byte) int {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	status, _ := do(t, req)
	return status
}

func do(t *testing.T, req *http.Request) (status int, answer string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: timeout}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// message is a message that an example posts to a channel.
type message struct {
	Content      string `json:"content"`
	Nonce        string `json:"nonce"`
	EnforceNonce bool   `json:"enforce_nonce"`
}

// rest is the part of Discord's REST API that examples call. Unlike Discord it
// creates a message for every POST, whatever the nonce, so that the test notices an
// example that posts twice.
type rest struct {
	url string

	mu       sync.Mutex // guards the fields below
	channels map[string][]message
	failing  map[string]bool
	news     chan struct{} // closed and replaced with every message
}

func newREST(t *testing.T) *rest {
	t.Helper()
	r := &rest{channels: map[string][]message{}, failing: map[string]bool{}, news: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /channels/{id}/messages", r.create)
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	r.url = srv.URL
	return r
}

func (r *rest) create(w http.ResponseWriter, req *http.Request) {
	var m message
	if req.Header.Get("Authorization") != "Bot "+botToken {
		http.Error(w, `{"message":"401: Unauthorized","code":0}`, http.StatusUnauthorized)
		return
	}
	if err := json.NewDecoder(req.Body).Decode(&m); err != nil || m.Content == "" {
		http.Error(w, `{"message":"Invalid Form Body","code":50035}`, http.StatusBadRequest)
		return
	}
	id := req.PathValue("id")
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failing[id] {
		r.failing[id] = false
		http.Error(w, `{"message":"500: Internal Server Error","code":0}`, http.StatusInternalServerError)
		return
	}
	r.channels[id] = append(r.channels[id], m)
	close(r.news)
	r.news = make(chan struct{})
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"id":"1","channel_id":%q,"content":%q}`, id, m.Content)
}

// fail makes the next message to a channel fail.
func (r *rest) fail(channel string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failing[channel] = true
}

// wait waits for the n-th message to a channel, and fails the test if there are
// more.
func (r *rest) wait(t *testing.T, channel string, n int) {
	t.Helper()
	limit := time.NewTimer(timeout)
	defer limit.Stop()
	for {
		r.mu.Lock()
		got, news := len(r.channels[channel]), r.news
		r.mu.Unlock()
		if got >= n {
			if got > n {
				t.Errorf("%d messages in the channel, want %d", got, n)
			}
			return
		}
		select {
		case <-news:
		case <-limit.C:
			t.Fatalf("%d messages in the channel after %v, want %d", got, timeout, n)
		}
	}
}

func (r *rest) messages(channel string) []message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]message(nil), r.channels[channel]...)
}

// delivery is a delivery that passed through a tap.
type delivery struct {
	header   http.Header
	body     []byte
	accepted []int // the example's answers that accepted it
}

// tap stands between the server and an example. It replaces the first answer that
// accepts a delivery with a 500, so that the server delivers it again.
type tap struct {
	url, to string
	t       *testing.T
	done    chan delivery // deliveries that were accepted twice

	mu         sync.Mutex // guards the fields below
	deliveries map[string]*delivery
	refusals   []int
	latest     delivery
}

func newTap(t *testing.T, to string) *tap {
	t.Helper()
	p := &tap{to: to, t: t, done: make(chan delivery, 100), deliveries: map[string]*delivery{}}
	srv := httptest.NewServer(p)
	t.Cleanup(srv.Close)
	p.url = srv.URL
	return p
}

// ServeHTTP implements http.Handler.
func (p *tap) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the server is stopping
	}
	status := post(context.WithoutCancel(r.Context()), p.t, p.to, r.Header, body)
	id := r.Header.Get("webhook-id")
	if !bytes.Contains(body, []byte(`MESSAGE_CREATE"`)) || id == "" {
		w.WriteHeader(status) // the answer to a PING
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if status/100 != 2 {
		p.refusals = append(p.refusals, status)
		w.WriteHeader(status)
		return
	}
	d := p.deliveries[id]
	if d == nil {
		d = &delivery{body: body}
		p.deliveries[id] = d
	}
	d.header, d.accepted = r.Header, append(d.accepted, status)
	if len(d.accepted) == 1 {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	p.latest = *d
	w.WriteHeader(status)
	p.done <- *d
}

// wait returns the next delivery that was accepted twice.
func (p *tap) wait(t *testing.T) delivery {
	t.Helper()
	select {
	case d := <-p.done:
		return d
	case <-time.After(timeout):
		t.Fatalf("no delivery within %v", timeout)
		return delivery{}
	}
}

func (p *tap) last() delivery {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.latest
}

// refused returns the example's answers other than 2xx.
func (p *tap) refused() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]int(nil), p.refusals...)
}
