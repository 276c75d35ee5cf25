package gateway

import (
	"bytes"
	"encoding/json"
	"net/http"
	"testing"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/openapi"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// TestNonceMade: a request without a nonce gets one that Discord accepts.
func TestNonceMade(t *testing.T) {
	t.Parallel()
	c := newCaller(t, discordtest.Config{}, postgrestest.New(t))
	c.start()
	c.ready(0)
	r := c.call(http.MethodPost, "/guilds/7/members/request", `{"query":"al","limit":5}`)
	var answer openapi.MembersRequested
	if err := json.Unmarshal(r.body, &answer); err != nil || r.status != http.StatusAccepted {
		t.Fatalf("%d %s: %v", r.status, r.body, err)
	}
	if n := len(answer.Nonce); n == 0 || n > maxNonce {
		t.Errorf("nonce %q", answer.Nonce)
	}
	if e := c.named("GUILD_MEMBERS_CHUNK", 1); !bytes.Contains(e.Data, []byte(answer.Nonce)) {
		t.Errorf("the chunk is %s, its nonce should be %q", e.Data, answer.Nonce)
	}
	c.legal()
}
