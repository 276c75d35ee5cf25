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

// demo runs the whole product on this machine: the real server, its embedded
// PostgreSQL in a temporary directory, a simulated Discord and a receiver that
// verifies every delivery.
func demo(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) (err error) {
	var o demoOptions
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.DurationVar(&o.runFor, "for", 0, "stop after this long, and fail unless every event was delivered and verified")
	flags.StringVar(&o.frames, "frames", "", "send the recorded gateway frames in this directory (JSON, one per file)")
	flags.Float64Var(&o.rate, "rate", 5, "events per second")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return errUsage
	case flags.NArg() > 0:
		return misused(stderr, "demo takes no arguments, but got %q", flags.Args())
	}
	if o.rate <= 0 || o.rate > 10000 {
		return fmt.Errorf("--rate %v is not valid: expected a number above 0, up to 10000", o.rate)
	}
	if o.runFor < 0 {
		return fmt.Errorf("--for %v is not valid: expected how long the demo runs, such as 10s, or 0 for no end", o.runFor)
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
		return fmt.Errorf("make a directory for the demo's database: %w", err)
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
		case "DATABASE_URL", "DATABASE_DIRECT_URL", "DISCORD_TOKEN", "DISCORD_API_URL", "GATEHOOK_SHARDS": // the demo uses its own
			return ""
		case "GATEHOOK_LOG_LEVEL":
			if getenv(name) == "" {
				return "warn" // the demo already prints a line per delivery
			}
		}
		return getenv(name)
	}, false)
	if err != nil {
		return cfg, err
	}
	// The shard identifies before the listeners are registered.
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

// free reports whether an address is free to listen on.
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

	mu  sync.Mutex // guards out
	out io.Writer
}

func (d *demonstration) run(ctx context.Context, cfg config, stderr io.Writer) error {
	receivers, err := d.receive()
	if err != nil {
		return err
	}
	defer receivers.server.Close() //nolint:errcheck // the process ends

	// The server runs until all events are delivered.
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

// receivers holds the two receivers: parsed verifies the deliveries of parsed events,
// raw those of raw events.
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
		// The demo does not know the secret of the user's own listener.
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

// received prints and records a verified delivery.
func (d *demonstration) received(r received) {
	d.print("%s  %-28s seq %-5d verified, attempt %s  %s\n", time.Now().Format("15:04:05.000"), r.event, r.seq, r.attempt, r.id)
	d.books.received(r)
}

// play registers the listeners, sends events until the time is over or ctx ends,
// and waits for the last deliveries.
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

// report prints the totals, and returns an error if anything went wrong.
func (d *demonstration) report(r *receivers) error {
	problems := append(append(d.books.problems(), r.parsed.problems()...), r.raw.problems()...)
	for _, e := range d.discord.Illegal() {
		problems = append(problems, fmt.Errorf("the server broke a rule of Discord: %s", e.Detail))
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
