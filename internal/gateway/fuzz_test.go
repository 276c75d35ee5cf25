package gateway

import (
	"encoding/json"
	"testing"

	"github.com/gatehook/gatehook/internal/discord"
)

// FuzzReady checks that the guilds in a READY never cause a panic.
func FuzzReady(f *testing.F) {
	f.Add([]byte(`{"session_id":"a","resume_gateway_url":"wss://r","guilds":[{"id":"1","unavailable":true},{"id":"1"}]}`))
	f.Add([]byte(`{"session_id":1,"guilds":{"id":[]}}`))
	f.Add([]byte(`{"guilds":[{"id":1},{"id":null},{}]}`))
	f.Fuzz(func(t *testing.T, d []byte) {
		var r discord.Ready
		_ = json.Unmarshal(d, &r) // as far as possible
		l := &loading{done: make(chan struct{})}
		l.expect(r.Guilds)
	})
}
