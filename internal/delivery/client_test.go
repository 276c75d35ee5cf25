package delivery

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/secret"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func testEvent() *event.Stored {
	return &event.Stored{
		Key: event.Key{Batch: 1 << 40, Ordinal: 7},
		Event: event.Event{
			ID: event.DispatchID(1, "s", event.Shard{ID: 2, Count: 5}, 9), Name: "GUILD_BAN_ADD", Shard: event.Shard{ID: 2, Count: 5}, Seq: 9,
			ReceivedAt: time.Date(2026, 1, 2, 3, 4, 5, 678000000, time.FixedZone("", 3600)),
			Data:       []byte("{\"a\" : 1.50e+3,\t\"b\":\"\\u00e9\\/\\ud83d\"}"),
		},
	}
}

func testListener(u string) *event.Listener {
	return &event.Listener{ID: 3, Event: "RAW_GUILD_*", URL: u, Format: event.FormatStandard, Secrets: []secret.Value{secret.New(testSecret)}}
}

func send(t *testing.T, s *sender, l *event.Listener) result {
	t.Helper()
	e := testEvent()
	return sendBody(t.Context(), t, s, l, appendBody(nil, l, deliveredName(l, &e.Event), &e.Event, e.Data, 1001))
}

func sendBody(ctx context.Context, t *testing.T, s *sender, l *event.Listener, body []byte) result {
	t.Helper()
	target, err := newTarget(l)
	if err != nil {
		t.Fatal(err)
	}
	e := testEvent()
	return s.send(ctx, target, e, body, ID{e.Key, l.ID}, 4, testParent)
}

const testParent = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"

// testKey signs in the format discord.
var testKey = signingKey{private: ed25519.NewKeyFromSeed([]byte(strings.Repeat("s", ed25519.SeedSize)))}

func testSenderConfig(timeout time.Duration) senderConfig {
	return senderConfig{
		Allow: loopback, Timeout: timeout, Version: "v1",
		Key: func() signingKey { return testKey },
	}
}

func newTestSender(t *testing.T, timeout time.Duration) *sender {
	t.Helper()
	s := newSender(testSenderConfig(timeout))
	t.Cleanup(s.close)
	return s
}

func TestBodies(t *testing.T) {
	t.Parallel()
	data := string(testEvent().Data)
	tests := []struct {
		event  string
		format event.Format
		want   string
	}{
		{
			"RAW_*", event.FormatStandard,
			`{"type":"RAW_GUILD_BAN_ADD","timestamp":"2026-01-02T02:04:05.678Z","id":"` + testEvent().ID.String() + `","shard":[2,5],"seq":9,"data":` + data + `}`,
		},
		{
			"GUILD_*", event.FormatStandard,
			`{"type":"GUILD_BAN_ADD","timestamp":"2026-01-02T02:04:05.678Z","id":"` + testEvent().ID.String() + `","shard":[2,5],"seq":9,"data":` + data + `}`,
		},
		{
			"GUILD_BAN_ADD", event.FormatDiscord,
			`{"version":1,"application_id":"1001","type":1,"event":{"type":"GUILD_BAN_ADD","timestamp":"2026-01-02T02:04:05.678Z","data":` + data + `}}`,
		},
		{
			"RAW_*", event.FormatDiscord,
			`{"version":1,"application_id":"1001","type":1,"event":{"type":"RAW_GUILD_BAN_ADD","timestamp":"2026-01-02T02:04:05.678Z","data":` + data + `}}`,
		},
		{"GUILD_BAN_ADD", event.FormatChatSDK, `{"type":"GATEWAY_GUILD_BAN_ADD","timestamp":1767319445678,"data":` + data + `}`},
	}
	for _, tt := range tests {
		e := &testEvent().Event
		l := &event.Listener{Event: tt.event, Format: tt.format}
		got := string(appendBody(nil, l, deliveredName(l, e), e, e.Data, 1001))
		if got != tt.want || !json.Valid([]byte(got)) {
			t.Errorf("%s, %s:\n got %s\nwant %s", tt.event, tt.format, got, tt.want)
		}
	}
	created := &testEvent().Event
	created.Origin = event.OriginJoin
	if b := string(appendBody(nil, &event.Listener{}, "GUILD_CREATE", created, nil, 0)); !strings.Contains(b, `"seq":9,"origin":"join","data":null}`) {
		t.Errorf("with an origin: %s", b)
	}
	odd := &event.Event{Name: "A\"\\\x01\n€"}
	var envelope struct{ Type string }
	if b := appendBody(nil, &event.Listener{}, odd.Name, odd, nil, 0); json.Unmarshal(b, &envelope) != nil || envelope.Type != odd.Name {
		t.Errorf("an odd name: %s", b)
	}
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
	// While a secret is rotated, either verifies.
	l.Secrets = append([]secret.Value{secret.New("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")}, l.Secrets...)
	if r := send(t, newTestSender(t, time.Minute), l); r.err != nil || r.status != 200 || r.class != class2xx {
		t.Fatalf("%+v", r)
	}
	c := <-calls
	if err := verify.Verify(c.body, c.header); err != nil {
		t.Errorf("the ecosystem's library refuses it: %v", err)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "User-Agent": "Gatehook/v1", "X-Token": "t", "Gatehook-Event": "RAW_GUILD_BAN_ADD",
		"Gatehook-Event-Id": testEvent().ID.String(), "Gatehook-Attempt": "4", "Gatehook-Shard": "2/5",
		"Webhook-Id": ID{testEvent().Key, 3}.String(), "Traceparent": testParent, "Accept-Encoding": "",
	} {
		if c.header.Get(name) != want {
			t.Errorf("%s is %q, want %q", name, c.header.Get(name), want)
		}
	}
	if n := len(strings.Fields(c.header.Get("Webhook-Signature"))); n != 2 {
		t.Errorf("%d signatures for 2 secrets", n)
	}
}

func TestAnswersThatAreNone(t *testing.T) {
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
			c.Close() //nolint:errcheck // that is the point
		}
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	secure := httptest.NewTLSServer(mux)
	secure.Config.ErrorLog = nil
	t.Cleanup(secure.Close)
	gone := httptest.NewServer(nil)
	gone.Close()
	t.Cleanup(func() { close(release) }) // first of all: Close waits for the handlers
	for _, tt := range []struct {
		url    string
		status int
		class  class
		kept   int
	}{
		{srv.URL + "/redirect", 302, class3xx, 0},
		{srv.URL + "/hang", 0, classTimeout, 0},
		{srv.URL + "/drip", 200, classTimeout, -1},
		{srv.URL + "/huge", 500, class5xx, responseKept},
		{srv.URL + "/header", 0, classConnection, 0},
		{srv.URL + "/drop", 0, classConnection, 0},
		{secure.URL + "/redirect", 0, classTLS, 0},
		{"http://[::1]:9/", 0, classRefused, 0},
		{gone.URL, 0, classConnection, 0},
	} {
		timeout := time.Minute
		if tt.class == classTimeout {
			timeout = 300 * time.Millisecond
		}
		r := send(t, newTestSender(t, timeout), testListener(tt.url+"?token=hunter2"))
		if r.status != tt.status || r.class != tt.class || tt.kept >= 0 && len(r.response) != tt.kept || (r.err == nil) != (tt.class < classTimeout) {
			t.Errorf("%s: status %d, %v, %d bytes kept, %v; want %d, %v", tt.url, r.status, r.class, len(r.response), r.err, tt.status, tt.class)
		}
		if r.err != nil && (strings.Contains(r.err.Error(), "hunter2") || strings.Contains(r.err.Error(), "\n")) {
			t.Errorf("%s: %v", tt.url, r.err)
		}
	}
}

func TestTargetNeedsASecret(t *testing.T) {
	t.Parallel()
	for _, secrets := range [][]secret.Value{nil, {secret.New("whsec_!")}, {secret.New("")}} {
		l := testListener("https://example.com")
		l.Secrets = secrets
		if _, err := newTarget(l); err == nil {
			t.Errorf("no error for %d secrets", len(secrets))
		}
	}
	if diff := cmp.Diff("[redacted]", secret.New("x").String()); diff != "" {
		t.Error(diff)
	}
}

// BenchmarkSend is an attempt beside the bare cost of the same POST.
func BenchmarkSend(b *testing.B) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusNoContent)
	}))
	defer srv.Close()
	e := testEvent()
	e.Data = []byte(`"` + strings.Repeat("x", 1000) + `"`)
	b.Run("gatehook", func(b *testing.B) {
		s := newSender(testSenderConfig(time.Minute))
		defer s.close()
		target, err := newTarget(testListener(srv.URL))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			j := job{stored: e, shared: &shared{}}
			body, err := j.body(target.listener, 1001)
			if err != nil {
				b.Fatal(err)
			}
			if r := s.send(b.Context(), target, e, body, ID{e.Key, 3}, 1, testParent); r.status != 204 {
				b.Fatal(r.err)
			}
		}
	})
	b.Run("bare", func(b *testing.B) {
		client := &http.Client{Transport: &http.Transport{}}
		defer client.CloseIdleConnections()
		b.ReportAllocs()
		for b.Loop() {
			req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, srv.URL, strings.NewReader(string(e.Data)))
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

func BenchmarkSign(b *testing.B) {
	s, err := newSigner(testListener(""))
	if err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 1000)
	b.ReportAllocs()
	for b.Loop() {
		s.sign("dlv_dyuvmkdd4mip_1_2", "1767319445", body)
	}
}
