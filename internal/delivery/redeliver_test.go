package delivery

import (
	"crypto/ed25519"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/secret"
)

// TestRefusedWhereverItIsDialed: the PING of a registration and the sample of POST
// /listeners/{id}/test are guarded like deliveries.
func TestRefusedWhereverItIsDialed(t *testing.T) {
	t.Parallel()
	srv := httptest.NewUnstartedServer(nil)
	srv.Config.ConnState = func(c net.Conn, _ http.ConnState) { t.Errorf("%v connected", c.RemoteAddr()) }
	srv.Start()
	defer srv.Close()
	target := srv.Listener.Addr()
	b := setup(t, Config{})
	b.stop()
	b.open(t, Config{}, 2) // allows no private ranges
	b.journal.add = func() event.Key { return event.Key{Batch: 1 << 40} }
	l := &event.Listener{
		ID: 1, Event: "RAW_GUILD_BAN_ADD", URL: "https://" + target.String(), Format: event.FormatDiscord,
		Secrets: []secret.Value{secret.New(testSecret)},
	}
	if err := b.Ping(t.Context(), l); err == nil || !strings.Contains(err.Error(), "refused to dial "+target.String()) {
		t.Errorf("the PING: %v", err)
	}
	made, err := b.test(t.Context(), l, testEvent())
	if err != nil || made.delivered || made.status != 0 || !strings.Contains(made.problem, "refused to dial "+target.String()) {
		t.Errorf("the sample: %+v, %v", made, err)
	}
}

// TestPing: a PING names the bot's application, and the newest key signs it.
func TestPing(t *testing.T) {
	t.Parallel()
	b := setup(t, Config{Application: func() event.Snowflake { return 77 }})
	if err := b.keyring.rotate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	public, err := hex.DecodeString(b.keyring.current(b.now()).Public())
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || !strings.Contains(string(body), `"application_id":"77"`) {
			t.Errorf("PING %s, %v", body, err)
		}
		signature, err := hex.DecodeString(r.Header.Get("X-Signature-Ed25519"))
		if err != nil || !ed25519.Verify(public, append([]byte(r.Header.Get("X-Signature-Timestamp")), body...), signature) {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer srv.Close()
	if err := b.Ping(t.Context(), &event.Listener{URL: srv.URL, Secrets: []secret.Value{secret.New(testSecret)}}); err != nil {
		t.Error(err)
	}
}
