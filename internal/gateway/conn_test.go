package gateway

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
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
		{"ws://[::1]:1/path?v=6&compress=zlib-stream&x=y", NoCompression, "ws://[::1]:1/path?encoding=json&v=10&x=y"},
		{"https://gateway.discord.gg", ZstdStream, ""},
		{"wss://", ZstdStream, ""},
		{"%", ZstdStream, ""},
		{"", ZstdStream, ""},
	}
	for _, tt := range tests {
		got, err := dialURL(tt.in, tt.c)
		if got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("%s: %s, %v", tt.in, got, err)
		}
	}
}

func TestShardURL(t *testing.T) {
	t.Parallel()
	tests := []struct{ gateway, resume, want string }{
		{"wss://g", "wss://r", "wss://r"},
		{"ws://g", "ws://r", "ws://r"},
		{"ws://g", "wss://r", "wss://r"},
		{"wss://g", "", "wss://g"},
		{"wss://g", "ws://r", "wss://g"},
		{"wss://g", "https://r", "wss://g"},
		{"wss://g", "%", "wss://g"},
		{"wss://g", "nowhere", "wss://g"},
	}
	for _, tt := range tests {
		s := &shard{starts: newStarts(1, gatewayInfo{URL: tt.gateway}, nil, &slots{}, quiet)}
		if got := s.url(tt.resume); got != tt.want {
			t.Errorf("gateway %s, resume %q: %s, want %s", tt.gateway, tt.resume, got, tt.want)
		}
	}
}

// TestDialFails: the error says what was tried, in one line and without the
// token, which is not in the URL anyway.
func TestDialFails(t *testing.T) {
	t.Parallel()
	d := newDialer("agent", ZstdStream, nil)
	_, err := d.dial(t.Context(), "ws://127.0.0.1:1")
	if err == nil || !strings.Contains(err.Error(), "dial the gateway") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v", err)
	}
}

// TestDialFollowsNoRedirect: it would lead the token to another server.
func TestDialFollowsNoRedirect(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("followed") }))
	defer other.Close()
	srv := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer srv.Close()
	d := newDialer("agent", ZstdStream, nil)
	_, err := d.dial(t.Context(), strings.Replace(srv.URL, "http", "ws", 1))
	if err == nil || !strings.Contains(err.Error(), "307") {
		t.Errorf("error %v", err)
	}
}
