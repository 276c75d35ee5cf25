package gateway

import (
	"slices"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/gateway/identify"
)

// TestShardURLs: a session is resumed at its own URL. The gateway's URL takes its
// place, with the session's compression, if that does not answer, or must not get
// the token.
func TestShardURLs(t *testing.T) {
	t.Parallel()
	unopened, silent, worked := &ending{}, &ending{opened: true}, &ending{opened: true, greeted: true}
	const resume = "wss://r?compress=zlib-stream"
	gateway := []string{"wss://g?compress=zlib-stream"}
	both := []string{resume, gateway[0]}
	tests := []struct {
		gateway, resume string
		before          *ending
		want            []string
	}{
		{"wss://g", resume, nil, both},
		{"wss://g", "wss://r?compress=none", nil, []string{"wss://r?compress=none", "wss://g?compress=none"}},
		{"wss://g", "wss://r", nil, []string{"wss://r?compress=zstd-stream", "wss://g?compress=zstd-stream"}},
		{"ws://g", "ws://r?compress=none", nil, []string{"ws://r?compress=none", "ws://g?compress=none"}},
		{"ws://g", resume, nil, []string{resume, "ws://g?compress=zlib-stream"}},
		{"wss://g", "", nil, []string{"wss://g"}},
		{"wss://g", "?compress=zlib-stream", nil, gateway},
		{"wss://g", "ws://r?compress=zlib-stream", nil, gateway},
		{"wss://g", "https://r?compress=zlib-stream", nil, gateway},
		{"wss://g", "%?compress=zlib-stream", nil, []string{"wss://g"}},
		{"wss://g", "nowhere?compress=zlib-stream", nil, gateway},
		{"wss://g", resume, worked, both},
		{"wss://g", resume, unopened, both},
		{"wss://g", resume, silent, gateway},
		{"wss://g", "wss://silent?compress=zlib-stream", nil, gateway},
		{"wss://g", "wss://silent", nil, []string{"wss://g?compress=zstd-stream"}},
		{"wss://g", "wss://long-ago?compress=none", nil, []string{"wss://long-ago?compress=none", "wss://g?compress=none"}},
		{"wss://g", "", unopened, []string{"wss://g"}},
	}
	urls := &silentURLs{at: make(map[string]time.Time)}
	urls.note("wss://long-ago", time.Now().Add(-silentKept))
	urls.note("wss://silent?compress=zstd-stream", time.Now())
	for _, tt := range tests {
		s := &shard{silent: urls, unnamed: discord.ZstdStream, turns: identify.NewTurns(identify.Config{Info: discord.GatewayInfo{URL: tt.gateway}})}
		if got := s.urls(tt.resume, tt.before); !slices.Equal(got, tt.want) {
			t.Errorf("gateway %s, resume %q after %+v: %s, want %s", tt.gateway, tt.resume, tt.before, got, tt.want)
		}
	}
}
