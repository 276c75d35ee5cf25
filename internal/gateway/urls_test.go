package gateway

import (
	"slices"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/gateway/identify"
)

// TestShardURLs: a session is resumed at its own URL. The gateway's URL takes its
// place if that does not answer, or must not get the token.
func TestShardURLs(t *testing.T) {
	t.Parallel()
	unopened, silent, worked := &ending{}, &ending{opened: true}, &ending{opened: true, greeted: true}
	both := []string{"wss://r", "wss://g"}
	tests := []struct {
		gateway, resume string
		before          *ending
		want            []string
	}{
		{"wss://g", "wss://r", nil, both},
		{"ws://g", "ws://r", nil, []string{"ws://r", "ws://g"}},
		{"ws://g", "wss://r", nil, []string{"wss://r", "ws://g"}},
		{"wss://g", "", nil, []string{"wss://g"}},
		{"wss://g", "ws://r", nil, []string{"wss://g"}},
		{"wss://g", "https://r", nil, []string{"wss://g"}},
		{"wss://g", "%", nil, []string{"wss://g"}},
		{"wss://g", "nowhere", nil, []string{"wss://g"}},
		{"wss://g", "wss://r", worked, both},
		{"wss://g", "wss://r", unopened, both},
		{"wss://g", "wss://r", silent, []string{"wss://g"}},
		{"wss://g", "wss://silent", nil, []string{"wss://g"}},
		{"wss://g", "wss://long-ago", nil, []string{"wss://long-ago", "wss://g"}},
		{"wss://g", "", unopened, []string{"wss://g"}},
	}
	urls := &silentURLs{at: make(map[string]time.Time)}
	urls.note("wss://long-ago", time.Now().Add(-silentKept))
	urls.at["wss://silent"] = time.Now()
	for _, tt := range tests {
		s := &shard{silent: urls, turns: identify.NewTurns(identify.Config{Info: discord.GatewayInfo{URL: tt.gateway}})}
		if got := s.urls(tt.resume, tt.before); !slices.Equal(got, tt.want) {
			t.Errorf("gateway %s, resume %q after %+v: %s, want %s", tt.gateway, tt.resume, tt.before, got, tt.want)
		}
	}
}
