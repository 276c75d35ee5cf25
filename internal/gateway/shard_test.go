package gateway

import (
	"testing"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/gateway/identify"
)

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
		s := &shard{turns: identify.NewTurns(identify.Config{Info: discord.GatewayInfo{URL: tt.gateway}})}
		if got := s.url(tt.resume); got != tt.want {
			t.Errorf("gateway %s, resume %q: %s, want %s", tt.gateway, tt.resume, got, tt.want)
		}
	}
}
