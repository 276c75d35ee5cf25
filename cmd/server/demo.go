package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/secret"
)

// demoOptions are the demo's flags.
type demoOptions struct {
	runFor time.Duration
	frames string
	rate   float64
}

// settleTimeout is how long the demo waits for the last deliveries.
const settleTimeout = 30 * time.Second

// demo runs the whole product on this machine: the very server, its embedded
// PostgreSQL in a temporary directory, a simulated Discord and a receiver that
// verifies every delivery.
func demo(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) (err error) {
	var o demoOptions
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.DurationVar(&o.runFor, "for", 0, "stop after this long, and fail unless every event was delivered and verified")
	flags.StringVar(&o.frames, "frames", "", "send the recorded gateway frames of this directory (JSON, one a file)")
	flags.Float64Var(&o.rate, "rate", 5, "events a second")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return errUsage
	case flags.NArg() > 0:
		return misused(stderr, "demo takes no arguments, but got %q", flags.Args())
	}
	if o.rate <= 0 || o.rate > 10000 {
		return fmt.Errorf("--rate %v is not usable: accepted is a number from above 0 to 10000", o.rate)
	}
	if o.runFor < 0 {
		return fmt.Errorf("--for %v is not usable: accepted is how long the demo runs, such as 10s, or 0 for no end", o.runFor)
	}
	script, err := newScript(o.frames)
	if err != nil {
		return err
	}
	cfg, err := demoConfig(getenv)
	if err != nil {
		return err
	}
	if cfg.dataDir, err = os.MkdirTemp("", "gatehook-demo-"); err != nil {
		return fmt.Errorf("make a place for the demo's database: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(cfg.dataDir)) }()

	discord, err := discordtest.Start(discordtest.Config{})
	if err != nil {
		return fmt.Errorf("start the simulated Discord: %w", err)
	}
	defer discord.Close()
	cfg.token, cfg.discordURL = secret.New(discord.Token()), discord.APIURL()

	fmt.Fprintln(stdout, "Starting PostgreSQL, a simulated Discord and a receiver…")
	return (&demonstration{options: o, discord: discord, script: script, out: stdout, books: newBooks()}).run(ctx, cfg, stderr)
}

func demoConfig(getenv func(string) string) (config, error) {
	cfg, err := readConfig(func(name string) string {
		switch name {
		case "DATABASE_URL", "DISCORD_TOKEN", "DISCORD_API_URL": // the demo has its own
			return ""
		case "GATEHOOK_LOG_LEVEL":
			if getenv(name) == "" {
				return "warn" // a line a delivery is enough
			}
		}
		return getenv(name)
	}, false)
	if err != nil {
		return cfg, err
	}
	// The listeners are registered when the shard is connected already.
	cfg.intents = intents{fixed: event.IntentsAll}
	cfg.allowTargets = append(cfg.allowTargets, netip.MustParsePrefix("127.0.0.0/8"))
	if cfg.apiKey.Empty() {
		cfg.apiKey = secret.New("gk_" + base64.RawURLEncoding.EncodeToString(random(24)))
	}
	if cfg.encryption.Empty() {
		if cfg.encryption, err = secret.ParseKeys(hex.EncodeToString(random(32))); err != nil {
			return cfg, err
		}
	}
	if getenv("GATEHOOK_ADDR") == "" && !free(cfg.addr) {
		cfg.addr = "127.0.0.1:0"
	}
	return cfg, nil
}

// free tells whether an address can be listened on.
func free(addr string) bool {
	l, err := net.Listen("tcp", addr) //nolint:noctx // opens and closes at once
	if err != nil {
		return false
	}
	return l.Close() == nil
}

// demonstration is one run of the demo.
type demonstration struct {
	options demoOptions
	discord *discordtest.Server
	script  *script
	books   *books

	mu  sync.Mutex
	out io.Writer
}

func (d *demonstration) run(ctx context.Context, cfg config, stderr io.Writer) error {
	receivers, err := d.receive()
	if err != nil {
		return err
	}
	defer receivers.server.Close() //nolint:errcheck // the process ends

	// The server runs until the events are through.
	serving, stop := context.WithCancelCause(ctx)
	defer stop(errDrained)
	type started struct {
		url string
		key secret.Value
	}
	ready, ended := make(chan started, 1), make(chan error, 1)
	go func() {
		ended <- serveConfig(serving, cfg, newLogger(cfg, stderr), d.out, func(url string, key secret.Value) { ready <- started{url, key} })
	}()
	var failed error
	select {
	case s := <-ready:
		failed = d.play(ctx, s.url, s.key, receivers)
	case err := <-ended:
		return err
	}
	stop(errDrained)
	if err := errors.Join(failed, <-ended); err != nil && ctx.Err() == nil {
		return err
	}
	return d.report(receivers)
}

// receivers verify what is delivered: one for parsed events, one for raw ones.
type receivers struct {
	server      *http.Server
	url         string
	parsed, raw *receiver
}

func (d *demonstration) receive() (*receivers, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // does not wait
	if err != nil {
		return nil, fmt.Errorf("start the receiver: %w", err)
	}
	r := &receivers{url: "http://" + l.Addr().String(), parsed: &receiver{on: d.received}, raw: &receiver{on: d.received}}
	mux := http.NewServeMux()
	mux.Handle("POST /parsed", r.parsed)
	mux.Handle("POST /raw", r.raw)
	mux.HandleFunc("POST /yours", func(w http.ResponseWriter, req *http.Request) {
		// The demo does not know the secret of a listener that somebody else
		// registered.
		d.print("%s  %-28s yours, attempt %s\n", time.Now().Format("15:04:05.000"), req.Header.Get("gatehook-event"), req.Header.Get("gatehook-attempt"))
		w.WriteHeader(http.StatusNoContent)
	})
	r.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go r.server.Serve(l) //nolint:errcheck // ends with Close
	return r, nil
}

func (d *demonstration) print(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.out, format, args...)
}

// received notes and prints a verified delivery.
func (d *demonstration) received(r received) {
	d.print("%s  %-28s seq %-5d verified, attempt %s  %s\n", time.Now().Format("15:04:05.000"), r.event, r.seq, r.attempt, r.id)
	d.books.received(r)
}

// play registers the listeners and sends events until it is time to stop.
func (d *demonstration) play(ctx context.Context, url string, key secret.Value, r *receivers) error {
	for _, l := range []struct {
		event, path string
		to          *receiver
	}{{"*", "/parsed", r.parsed}, {"RAW_*", "/raw", r.raw}} {
		signing, err := register(ctx, url, key, l.event, r.url+l.path)
		if err != nil {
			return err
		}
		if err := l.to.trust(signing); err != nil {
			return err
		}
	}
	if _, err := d.discord.WaitReady(ctx, 0); err != nil {
		return fmt.Errorf("wait for the shard: %w", err)
	}
	d.print(`
The API is at %[1]s, its key is %[2]s
Register another listener:

  curl -X POST %[1]s/listeners -H 'Authorization: Bearer %[2]s' \
    -H 'Content-Type: application/json' -d '{"event":"MESSAGE_CREATE","url":"%[3]s/yours"}'

`, url, key.Reveal(), r.url)

	tick := time.NewTicker(time.Duration(float64(time.Second) / d.options.rate))
	defer tick.Stop()
	var over <-chan time.Time
	if d.options.runFor > 0 {
		timer := time.NewTimer(d.options.runFor)
		defer timer.Stop()
		over = timer.C
	}
	for {
		if err := d.send(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-over:
			return d.books.await(ctx, settleTimeout)
		case <-ctx.Done():
			return d.books.await(context.WithoutCancel(ctx), settleTimeout)
		}
	}
}

func (d *demonstration) send() error {
	f := d.script.next()
	sent, err := d.discord.DispatchFrame(0, f)
	if err != nil {
		return fmt.Errorf("send %s: %w", f.Name, err)
	}
	d.books.sent(sent.Seq, f.Name, f.Data)
	return nil
}

// report says how it went, and fails if anything is amiss.
func (d *demonstration) report(r *receivers) error {
	problems := append(append(d.books.problems(), r.parsed.problems()...), r.raw.problems()...)
	for _, e := range d.discord.Illegal() {
		problems = append(problems, fmt.Errorf("the simulated Discord saw something illegal: %s", e.Detail))
	}
	sent, verified, twice := d.books.sums()
	d.print("\n%d events sent, each raw and parsed: %d deliveries verified, %d came twice, %d problems\n", sent, verified, twice, len(problems))
	return errors.Join(problems...)
}

// register creates a listener and returns its secret.
func register(ctx context.Context, api string, key secret.Value, eventName, url string) (string, error) {
	body, err := json.Marshal(map[string]string{"event": eventName, "url": url})
	if err != nil {
		return "", fmt.Errorf("register %s: %w", eventName, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, api+"/listeners", bytes.NewReader(body))
	if err != nil {
		return "", fmt.Errorf("register %s: %w", eventName, err)
	}
	req.Header.Set("Authorization", "Bearer "+key.Reveal())
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("register %s: %w", eventName, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusCreated {
		return "", fmt.Errorf("register %s: %s: %s", eventName, resp.Status, answer)
	}
	var created struct {
		Secret string `json:"secret"`
	}
	if err := json.Unmarshal(answer, &created); err != nil {
		return "", fmt.Errorf("register %s: %w", eventName, err)
	}
	return created.Secret, nil
}

// script is what the simulated Discord sends, over and over.
type script struct {
	frames []discordtest.Frame
	at     int
}

func (s *script) next() discordtest.Frame {
	f := s.frames[s.at%len(s.frames)]
	s.at++
	return f
}

// newScript reads recorded frames, or makes some up.
func newScript(dir string) (*script, error) {
	if dir == "" {
		return madeUp()
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("--frames %s: there is no *.json in it", dir)
	}
	s := &script{}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("--frames: %w", err)
		}
		f, err := discordtest.ParseFrame(b)
		if err != nil {
			return nil, fmt.Errorf("--frames: %s: %w", name, err)
		}
		s.frames = append(s.frames, f)
	}
	return s, nil
}

// madeUp are frames as small as they come, of events that a bot would want.
func madeUp() (*script, error) {
	s := &script{}
	for _, f := range []string{
		`{"t":"MESSAGE_CREATE","s":1,"op":0,"d":{"id":"1300000000000000001","channel_id":"1300000000000000010","guild_id":"1300000000000000100","author":{"id":"1300000000000001000","username":"ada","discriminator":"0","avatar":null,"global_name":"Ada"},"content":"hello \u2764 <b>world</b>","timestamp":"2026-01-01T00:00:00.000000+00:00","edited_timestamp":null,"tts":false,"mention_everyone":false,"mentions":[],"mention_roles":[],"attachments":[],"embeds":[],"pinned":false,"type":0}}`,
		`{"t":"TYPING_START","s":1,"op":0,"d":{"user_id":"1300000000000001000","timestamp":1767225600,"guild_id":"1300000000000000100","channel_id":"1300000000000000010"}}`,
		`{"t":"MESSAGE_REACTION_ADD","s":1,"op":0,"d":{"user_id":"1300000000000001000","type":0,"message_id":"1300000000000000001","emoji":{"name":"🔥","id":null},"channel_id":"1300000000000000010","guild_id":"1300000000000000100","burst":false}}`,
		`{"t":"GUILD_MEMBER_ADD","s":1,"op":0,"d":{"guild_id":"1300000000000000100","user":{"id":"1300000000000001001","username":"bob","discriminator":"0","avatar":null},"roles":[],"joined_at":"2026-01-01T00:00:00.000000+00:00","deaf":false,"mute":false,"flags":0}}`,
		`{"t":"GUILD_BAN_ADD","s":1,"op":0,"d":{"guild_id":"1300000000000000100","user":{"id":"1300000000000001002","username":"mallory","discriminator":"0","avatar":null}}}`,
		`{"t":"MESSAGE_DELETE","s":1,"op":0,"d":{"id":"1300000000000000001","channel_id":"1300000000000000010","guild_id":"1300000000000000100"}}`,
	} {
		frame, err := discordtest.ParseFrame([]byte(f))
		if err != nil {
			return nil, fmt.Errorf("the demo's own frames: %w", err)
		}
		s.frames = append(s.frames, frame)
	}
	return s, nil
}

// books compare what was sent with what was delivered.
type books struct {
	mu       sync.Mutex
	expected map[int64]sentEvent
	got      map[string]received // by event name and sequence number
	twice    int
	changed  chan struct{} // closed and replaced at every delivery
}

type sentEvent struct {
	name string
	data []byte
}

func newBooks() *books {
	return &books{expected: map[int64]sentEvent{}, got: map[string]received{}, changed: make(chan struct{})}
}

func (b *books) sent(seq int64, name string, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expected[seq] = sentEvent{name, data}
}

func bookKey(name string, seq int64) string { return fmt.Sprintf("%s %d", name, seq) }

func (b *books) received(r received) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.seq == 0 {
		return // a shard event: nobody sent it
	}
	k := bookKey(r.event, r.seq)
	if _, ok := b.got[k]; ok {
		b.twice++
	}
	b.got[k] = r
	close(b.changed)
	b.changed = make(chan struct{})
}

// missing are the deliveries that have not come.
func (b *books) missing() (missing []string, changed <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for seq, e := range b.expected {
		for _, name := range []string{e.name, event.RawPrefix + e.name} {
			if _, ok := b.got[bookKey(name, seq)]; !ok {
				missing = append(missing, bookKey(name, seq))
			}
		}
	}
	return missing, b.changed
}

// await waits until nothing is missing.
func (b *books) await(ctx context.Context, timeout time.Duration) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		missing, changed := b.missing()
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return fmt.Errorf("%d deliveries did not come within %v, such as %s", len(missing), timeout, missing[0])
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// problems are the deliveries whose payload is not the one that was sent: raw
// ones are compared byte by byte.
func (b *books) problems() (problems []error) {
	missing, _ := b.missing()
	for _, m := range missing {
		problems = append(problems, fmt.Errorf("%s was not delivered", m))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for seq, e := range b.expected {
		raw, parsed := b.got[bookKey(event.RawPrefix+e.name, seq)], b.got[bookKey(e.name, seq)]
		if raw.id != "" && !bytes.Equal(raw.data, e.data) {
			problems = append(problems, fmt.Errorf("%s has other bytes than were sent", bookKey(raw.event, seq)))
		}
		if parsed.id != "" && !json.Valid(parsed.data) {
			problems = append(problems, fmt.Errorf("%s is not JSON", bookKey(parsed.event, seq)))
		}
		if raw.eventID != parsed.eventID || raw.id == parsed.id && raw.id != "" {
			problems = append(problems, fmt.Errorf("event %d has ids %s and %s, deliveries %s and %s", seq, raw.eventID, parsed.eventID, raw.id, parsed.id))
		}
	}
	return problems
}

func (b *books) sums() (sent, verified, twice int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for seq, e := range b.expected {
		for _, name := range []string{e.name, event.RawPrefix + e.name} {
			if _, ok := b.got[bookKey(name, seq)]; ok {
				verified++
			}
		}
	}
	return len(b.expected), verified, b.twice
}
