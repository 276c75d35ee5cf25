package main

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// TestListenerThatCanNeverReceive checks that a listener whose intent is switched
// off is refused with a link to the page with the switch, and accepted once the
// intent is on.
func TestListenerThatCanNeverReceive(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	discord.SetFlags(0)
	p := newProcess(t, discord, "DATABASE_URL="+postgrestest.URL(t), "GATEHOOK_INTENTS=auto")
	p.start()
	awaitReady(t, discord)
	const body = `{"event":"GUILD_MEMBER_ADD","url":"https://customer.example/members"}`
	status, answer := p.call(http.MethodPost, "/listeners", body)
	if status != http.StatusBadRequest || !strings.Contains(answer, `"field":"event"`) ||
		!strings.Contains(answer, "https://discord.com/developers/applications/1001/bot") {
		t.Errorf("with the intent switched off: %d %s", status, answer)
	}
	discord.SetFlags(discordtest.FlagsAll)
	eventually(t, time.Minute, "accepted", func() (bool, string) {
		status, answer = p.call(http.MethodPost, "/listeners", body)
		return status == http.StatusCreated, answer
	})
	if !strings.Contains(answer, "identify again with GUILD_MEMBERS") {
		t.Errorf("created: %s", answer)
	}
}
