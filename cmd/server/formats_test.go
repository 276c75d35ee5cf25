package main

import (
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// TestDiscordFormat checks that a receiver of Discord's own webhook events, which
// knows only the public key, accepts the server's deliveries.
func TestDiscordFormat(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+postgrestest.URL(t))
	p.start()
	awaitReady(t, discord)

	var public atomic.Pointer[[]byte]
	trust := func(path, method, body string) {
		t.Helper()
		status, body := p.call(method, path, body)
		var keys struct {
			Data []struct {
				PublicKey string `json:"public_key"`
			}
		}
		if err := json.Unmarshal([]byte(body), &keys); err != nil || status != http.StatusOK || len(keys.Data) == 0 {
			t.Fatalf("%s %s: %d %s", method, path, status, body)
		}
		key, err := hex.DecodeString(keys.Data[0].PublicKey)
		if err != nil || len(key) != ed25519.PublicKeySize {
			t.Fatalf("the key %q, %v", keys.Data[0].PublicKey, err)
		}
		public.Store(&key)
	}
	events := make(chan string, 100)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		signature, badHex := hex.DecodeString(r.Header.Get("X-Signature-Ed25519"))
		if err != nil || badHex != nil || !ed25519.Verify(*public.Load(), append([]byte(r.Header.Get("X-Signature-Timestamp")), body...), signature) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		var envelope struct {
			Version       int
			Type          int
			ApplicationID string `json:"application_id"`
			Event         struct {
				Type, Timestamp string
				Data            json.RawMessage
			}
		}
		if err := json.Unmarshal(body, &envelope); err != nil || envelope.Version != 1 || envelope.ApplicationID != "1001" {
			t.Errorf("body %s, %v", body, err)
		}
		if envelope.Type == 1 {
			if _, err := time.Parse(time.RFC3339Nano, envelope.Event.Timestamp); err != nil {
				t.Error(err)
			}
			events <- envelope.Event.Type + " " + string(envelope.Event.Data)
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(srv.Close)

	trust("/signing-keys", http.MethodGet, "")
	register := fmt.Sprintf(`{"event":"RAW_MESSAGE_CREATE","url":%q,"format":"discord"}`, srv.URL)
	if status, body := p.call(http.MethodPost, "/listeners", register); status != http.StatusCreated {
		t.Fatalf("register: %d %s", status, body)
	}
	deliver := func(id int) {
		t.Helper()
		data := fmt.Sprintf(`{ "id":"%d", "channel_id":"2","author":{"id":"3"},"content":"\u2764" }`, id)
		if _, err := discord.Dispatch(0, "MESSAGE_CREATE", []byte(data)); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-events:
			if got != "RAW_MESSAGE_CREATE "+data {
				t.Errorf("got %s, want %s", got, data)
			}
		case <-time.After(time.Minute):
			t.Fatal("no delivery arrived")
		}
	}
	deliver(1)
	trust("/signing-keys/rotate", http.MethodPost, `{"activate_after":"0s"}`)
	deliver(2)

	// A callback that accepts any signature is not registered.
	open := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	t.Cleanup(open.Close)
	status, body := p.call(http.MethodPost, "/listeners", fmt.Sprintf(`{"event":"GUILD_CREATE","url":%q,"format":"discord"}`, open.URL))
	if status != http.StatusBadRequest || !strings.Contains(body, "badly signed PING") {
		t.Errorf("a callback that does not verify: %d %s", status, body)
	}
}

// TestChatSDKFormat checks the form that the Chat SDK's Discord adapter expects:
// its token in a header, and the event under the adapter's name for it.
func TestChatSDKFormat(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+postgrestest.URL(t))
	p.start()
	awaitReady(t, discord)
	bodies := make(chan string, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Header.Get("X-Discord-Gateway-Token") != "the token of the adapter" {
			t.Errorf("%v, headers %v", err, r.Header)
		}
		bodies <- string(body)
	}))
	t.Cleanup(srv.Close)
	register := fmt.Sprintf(`{"event":"MESSAGE_CREATE","url":%q,"format":"chat-sdk","headers":{"x-discord-gateway-token":"the token of the adapter"}}`, srv.URL)
	if status, body := p.call(http.MethodPost, "/listeners", register); status != http.StatusCreated {
		t.Fatalf("register: %d %s", status, body)
	}
	if _, err := discord.Dispatch(0, "MESSAGE_CREATE", []byte(`{"id":"1","channel_id":"2","author":{"id":"3"}}`)); err != nil {
		t.Fatal(err)
	}
	var body struct {
		Type      string
		Timestamp int64
		Data      struct{ ID string }
	}
	select {
	case got := <-bodies:
		if err := json.Unmarshal([]byte(got), &body); err != nil || body.Type != "GATEWAY_MESSAGE_CREATE" || body.Data.ID != "1" ||
			time.Since(time.UnixMilli(body.Timestamp)).Abs() > time.Hour {
			t.Errorf("body %s, %v", got, err)
		}
	case <-time.After(time.Minute):
		t.Fatal("no delivery arrived")
	}
}
