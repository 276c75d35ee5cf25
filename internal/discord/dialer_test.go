package discord

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestDialURL(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in   string
		c    Compression
		want string
	}{
		{"wss://gateway.discord.gg", ZstdStream, "wss://gateway.discord.gg/?compress=zstd-stream&encoding=json&v=10"},
		{"wss://gateway.discord.gg/", ZlibStream, "wss://gateway.discord.gg/?compress=zlib-stream&encoding=json&v=10"},
		{"ws://[::1]:1/path?v=6&x=y", NoCompression, "ws://[::1]:1/path?encoding=json&v=10&x=y"},
		{"wss://r?compress=zlib-stream", ZstdStream, "wss://r/?compress=zlib-stream&encoding=json&v=10"},
		{"wss://r?compress=none", ZstdStream, "wss://r/?encoding=json&v=10"},
		{"wss://r?compress=unknown", ZstdStream, "wss://r/?compress=zstd-stream&encoding=json&v=10"},
		{"https://gateway.discord.gg", ZstdStream, ""},
		{"wss://", ZstdStream, ""},
		{"%", ZstdStream, ""},
		{"", ZstdStream, ""},
	}
	for _, tt := range tests {
		got, _, err := dialURL(tt.in, tt.c)
		if got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("%s: %s, %v", tt.in, got, err)
		}
	}
}

// TestDialFails: the error names the failed step, in one line.
func TestDialFails(t *testing.T) {
	t.Parallel()
	d := NewDialer(Config{Agent: "agent"})
	_, err := d.Dial(t.Context(), "ws://127.0.0.1:1")
	if err == nil || !strings.Contains(err.Error(), "dial the gateway") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v", err)
	}
}

// TestDialFailures: why a connection could not be opened is one of a few labels.
func TestDialFailures(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }))
	defer plain.Close()
	untrusted := httptest.NewTLSServer(plain.Config.Handler)
	untrusted.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer untrusted.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it is closed at once
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	fails := func(err error) DialFunc {
		return func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: err}
		}
	}
	ws := func(s *httptest.Server) string { return strings.Replace(s.URL, "http", "ws", 1) }
	for name, tt := range map[string]struct {
		url  string
		dial DialFunc
		want string
	}{
		"a name that is unknown":          {"ws://discord.invalid", fails(&net.DNSError{Err: "no such host", IsNotFound: true}), "dns"},
		"a resolver that does not answer": {"ws://discord.invalid", fails(&net.DNSError{Err: "timeout", IsTimeout: true}), "dns"},
		"a port that is closed":           {"ws://" + closed.Addr().String(), nil, "refused"},
		"an address without an answer":    {"ws://discord.invalid", fails(os.ErrDeadlineExceeded), "timeout"},
		"an unknown authority":            {ws(untrusted), nil, "tls"},
		"no TLS":                          {strings.Replace(plain.URL, "http", "wss", 1), nil, "tls"},
		"an error":                        {ws(plain), nil, "http_status"},
		"no route":                        {"ws://discord.invalid", fails(syscall.EHOSTUNREACH), "other"},
		"no URL":                          {"ws://", nil, "other"},
	} {
		_, err := NewDialer(Config{Dial: tt.dial}).Dial(t.Context(), tt.url)
		if failure, ok := errors.AsType[*DialError](err); !ok || failure.Reason != tt.want || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
	}
}

// TestDialUnanswered: a dial without an answer has the reason timeout, whoever
// bounded it, and the error wraps the bound's cause.
func TestDialUnanswered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := NewDialer(Config{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}})
		late := errors.New("too late")
		bounded, cancel := context.WithTimeoutCause(t.Context(), time.Second, late)
		defer cancel()
		for _, ctx := range []context.Context{t.Context(), bounded} {
			_, err := d.Dial(ctx, "ws://discord.invalid")
			failure, ok := errors.AsType[*DialError](err)
			if !ok || failure.Reason != "timeout" || errors.Is(err, late) != (ctx == bounded) {
				t.Errorf("%+v", err)
			}
		}
	})
}

// TestAhead: Discord's clock is what it says, to a second.
func TestAhead(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 14, 15, 0, 0, 700e6, time.UTC)
	for date, want := range map[string]time.Duration{
		"Sat, 14 Mar 2026 15:00:00 GMT": 0, "Sat, 14 Mar 2026 15:00:02 GMT": 0, "Sat, 14 Mar 2026 14:59:59 GMT": 0,
		"Sat, 14 Mar 2026 16:00:00 GMT": time.Hour - 700*time.Millisecond, "Sat, 14 Mar 2026 14:00:00 GMT": -time.Hour - 700*time.Millisecond,
		"": 0, "soon": 0,
	} {
		if got := ahead(date, now); got != want {
			t.Errorf("%q: %v, want %v", date, got, want)
		}
	}
}

// TestDialFollowsNoRedirect: it would lead the token to another server.
func TestDialFollowsNoRedirect(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("followed") }))
	defer other.Close()
	srv := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer srv.Close()
	d := NewDialer(Config{Agent: "agent"})
	_, err := d.Dial(t.Context(), strings.Replace(srv.URL, "http", "ws", 1))
	if err == nil || !strings.Contains(err.Error(), "307") {
		t.Errorf("error %v", err)
	}
}
