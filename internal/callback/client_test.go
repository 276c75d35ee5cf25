package callback_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/secret"
)

const testSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func testEvent() *event.Event {
	return &event.Event{
		ID: event.DispatchID(1, "s", event.Shard{ID: 2, Count: 5}, 9), Name: "GUILD_BAN_ADD", Shard: event.Shard{ID: 2, Count: 5}, Seq: 9,
		ReceivedAt: time.Date(2026, 1, 2, 3, 4, 5, 678000000, time.FixedZone("", 3600)),
		Data:       []byte("{\"a\" : 1.50e+3,\t\"b\":\"\\u00e9\\/\\ud83d\"}"),
	}
}

func testListener(u string) *event.Listener {
	return &event.Listener{ID: 3, Event: "RAW_GUILD_*", URL: u, Format: event.FormatStandard, Secrets: []secret.Value{secret.New(testSecret)}}
}

func send(t *testing.T, c *callback.Client, l *event.Listener) callback.Result {
	t.Helper()
	return sendBody(t.Context(), t, c, l, []byte(`{"type":"RAW_GUILD_BAN_ADD"}`))
}

func sendBody(ctx context.Context, t *testing.T, c *callback.Client, l *event.Listener, body []byte) callback.Result {
	t.Helper()
	target, err := callback.NewTarget(l)
	if err != nil {
		t.Fatal(err)
	}
	return c.Send(ctx, target, testRequest(body))
}

func testRequest(body []byte) *callback.Request {
	return &callback.Request{
		ID: "dlv_dyuvmkdd4mip_1_2", Name: "RAW_GUILD_BAN_ADD", Event: testEvent(), Body: body, Attempt: 4, Traceparent: testParent,
	}
}

const testParent = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"

// testKey signs in the format discord.
var testKey = callback.KeyFromSeed([]byte(strings.Repeat("s", ed25519.SeedSize)))

func testConfig(timeout time.Duration) callback.Config {
	return callback.Config{
		Allow: loopback, Timeout: timeout, Version: "v1",
		Key: func() callback.Key { return testKey },
	}
}

func newClient(t *testing.T, cfg callback.Config) *callback.Client {
	t.Helper()
	c := callback.New(cfg)
	t.Cleanup(c.Close)
	return c
}

func TestHeadersOfADelivery(t *testing.T) {
	t.Parallel()
	verify, err := standardwebhooks.NewWebhook(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	type got struct {
		header http.Header
		body   []byte
	}
	calls := make(chan got, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		calls <- got{r.Header, body}
	}))
	defer srv.Close()
	l := testListener(srv.URL + "/path?q=1")
	l.Headers = map[string]string{"x-token": "t"}
	// During the rotation of a secret, either one verifies.
	l.Secrets = append([]secret.Value{secret.New("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")}, l.Secrets...)
	if r := send(t, newClient(t, testConfig(time.Minute)), l); r.Err != nil || r.Status != 200 || r.Class != callback.Class2xx {
		t.Fatalf("%+v", r)
	}
	c := <-calls
	if err := verify.Verify(c.body, c.header); err != nil {
		t.Errorf("the Standard Webhooks library refuses the signature: %v", err)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "User-Agent": "Gatehook/v1", "X-Token": "t", "Gatehook-Event": "RAW_GUILD_BAN_ADD",
		"Gatehook-Event-Id": testEvent().ID.String(), "Gatehook-Attempt": "4", "Gatehook-Shard": "2/5",
		"Webhook-Id": "dlv_dyuvmkdd4mip_1_2", "Traceparent": testParent, "Accept-Encoding": "",
	} {
		if c.header.Get(name) != want {
			t.Errorf("%s is %q, want %q", name, c.header.Get(name), want)
		}
	}
	if n := len(strings.Fields(c.header.Get("Webhook-Signature"))); n != 2 {
		t.Errorf("%d signatures for 2 secrets", n)
	}
}

// TestNoFieldIsSplit: a line break in the name of an event that is stored does not
// begin a field of its own.
func TestNoFieldIsSplit(t *testing.T) {
	t.Parallel()
	calls := make(chan http.Header, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { calls <- r.Header }))
	defer srv.Close()
	c := newClient(t, testConfig(time.Minute))
	l := testListener(srv.URL)
	target, err := callback.NewTarget(l)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ODD\r\nX-Injected: yes", "ODD\nX-Injected: yes", "ODD\rX-Injected: yes", "ODD\x00\x7f"} {
		r := c.Send(t.Context(), target, &callback.Request{ID: "dlv_1", Name: name, Event: testEvent(), Body: []byte("{}"), Attempt: 1, Traceparent: testParent})
		if r.Err != nil || r.Status != 200 {
			t.Fatalf("%q: %+v", name, r)
		}
		if h := <-calls; h.Get("X-Injected") != "" || !strings.HasPrefix(h.Get("Gatehook-Event"), "ODD?") {
			t.Errorf("%q is sent as %q", name, h)
		}
	}
}

// TestSignedLikeDiscord: a delivery in the format discord has a second signature, over
// the timestamp and the body.
func TestSignedLikeDiscord(t *testing.T) {
	t.Parallel()
	public, err := hex.DecodeString(testKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	requests := make(chan *http.Request, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, ok := verified(t, r, public)
		if !ok {
			t.Error("the signature does not verify")
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		requests <- r
	}))
	defer srv.Close()
	l := testListener(srv.URL)
	l.Format = event.FormatDiscord
	if r := send(t, newClient(t, testConfig(time.Minute)), l); r.Err != nil {
		t.Fatal(r.Err)
	}
	r := <-requests
	if r.Header.Get("Webhook-Timestamp") != r.Header.Get("X-Signature-Timestamp") || !strings.HasPrefix(r.Header.Get("Webhook-Signature"), "v1,") {
		t.Errorf("headers %v", r.Header)
	}
	l.Format = event.FormatStandard
	srv.Config.Handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { requests <- r })
	if r := send(t, newClient(t, testConfig(time.Minute)), l); r.Err != nil {
		t.Fatal(r.Err)
	}
	if r := <-requests; r.Header.Get("X-Signature-Ed25519") != "" {
		t.Error("a delivery in the format standard is signed with Ed25519")
	}
}

func TestFailedPosts(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/followed", http.StatusFound) })
	mux.HandleFunc("/followed", func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") })
	mux.HandleFunc("/hang", func(http.ResponseWriter, *http.Request) { <-release })
	mux.HandleFunc("/drip", func(w http.ResponseWriter, r *http.Request) {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
			if _, err := w.Write([]byte(".")); err != nil {
				return
			}
			w.(http.Flusher).Flush()
		}
	})
	mux.HandleFunc("/huge", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		for range 1000 {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/header", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 1<<20)) })
	mux.HandleFunc("/drop", func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			c.Close() //nolint:errcheck // it is closed on purpose
		}
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	secure := httptest.NewTLSServer(mux)
	secure.Config.ErrorLog = nil
	t.Cleanup(secure.Close)
	gone := httptest.NewServer(nil)
	gone.Close()
	t.Cleanup(func() { close(release) }) // runs first, because Close waits for the handlers
	for _, tt := range []struct {
		url    string
		status int
		class  callback.Class
		kept   int
	}{
		{srv.URL + "/redirect", 302, callback.Class3xx, 0},
		{srv.URL + "/hang", 0, callback.ClassTimeout, 0},
		{srv.URL + "/drip", 200, callback.ClassTimeout, -1},
		{srv.URL + "/huge", 500, callback.Class5xx, 1024},
		{srv.URL + "/header", 0, callback.ClassConnection, 0},
		{srv.URL + "/drop", 0, callback.ClassConnection, 0},
		{secure.URL + "/redirect", 0, callback.ClassTLS, 0},
		{"http://[::1]:9/", 0, callback.ClassRefused, 0},
		{gone.URL, 0, callback.ClassConnection, 0},
	} {
		timeout := time.Minute
		if tt.class == callback.ClassTimeout {
			timeout = 300 * time.Millisecond
		}
		r := send(t, newClient(t, testConfig(timeout)), testListener(tt.url+"?token=hunter2"))
		if r.Status != tt.status || r.Class != tt.class || tt.kept >= 0 && len(r.Response) != tt.kept || (r.Err == nil) != (tt.class < callback.ClassTimeout) {
			t.Errorf("%s: status %d, %v, %d bytes kept, %v; want %d, %v", tt.url, r.Status, r.Class, len(r.Response), r.Err, tt.status, tt.class)
		}
		if r.Err != nil && (strings.Contains(r.Err.Error(), "hunter2") || strings.Contains(r.Err.Error(), "\n")) {
			t.Errorf("%s: %v", tt.url, r.Err)
		}
	}
}

func TestTargetNeedsASecret(t *testing.T) {
	t.Parallel()
	for _, secrets := range [][]secret.Value{nil, {secret.New("whsec_!")}, {secret.New("")}} {
		l := testListener("https://example.com")
		l.Secrets = secrets
		if _, err := callback.NewTarget(l); err == nil {
			t.Errorf("no error for %d secrets", len(secrets))
		}
	}
	if diff := cmp.Diff("[redacted]", secret.New("x").String()); diff != "" {
		t.Error(diff)
	}
}

// BenchmarkSend compares an attempt with a bare POST of the same body.
func BenchmarkSend(b *testing.B) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusNoContent)
	}))
	defer srv.Close()
	body := []byte(`"` + strings.Repeat("x", 1000) + `"`)
	b.Run("gatehook", func(b *testing.B) {
		c := callback.New(testConfig(time.Minute))
		defer c.Close()
		target, err := callback.NewTarget(testListener(srv.URL))
		if err != nil {
			b.Fatal(err)
		}
		req := testRequest(body)
		b.ReportAllocs()
		for b.Loop() {
			if r := c.Send(b.Context(), target, req); r.Status != 204 {
				b.Fatal(r.Err)
			}
		}
	})
	b.Run("bare", func(b *testing.B) {
		client := &http.Client{Transport: &http.Transport{}}
		defer client.CloseIdleConnections()
		b.ReportAllocs()
		for b.Loop() {
			req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, srv.URL, bytes.NewReader(body))
			if err != nil {
				b.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				b.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	})
}
