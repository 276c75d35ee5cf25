package discord

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

// TestDialFails: the error names the failed step, in one line.
func TestDialFails(t *testing.T) {
	t.Parallel()
	d := NewDialer(Config{Agent: "agent"})
	_, err := d.Dial(t.Context(), "ws://127.0.0.1:1")
	if err == nil || !strings.Contains(err.Error(), "dial the gateway") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v", err)
	}
}

// TestDialFollowsNoRedirect: a redirect would send the token to another server.
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
