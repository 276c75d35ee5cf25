package callback_test

import (
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/secret"
)

// verified reports whether a request is signed as Discord signs (Discord: Security and
// Authorization).
func verified(t *testing.T, r *http.Request, public ed25519.PublicKey) (body []byte, ok bool) {
	t.Helper()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Error(err)
	}
	signature, err := hex.DecodeString(r.Header.Get("X-Signature-Ed25519"))
	return body, err == nil && ed25519.Verify(public, append([]byte(r.Header.Get("X-Signature-Timestamp")), body...), signature)
}

// TestPing: a callback passes if it accepts a signed PING and refuses a badly signed
// one; otherwise the error says what went wrong.
func TestPing(t *testing.T) {
	t.Parallel()
	c := newClient(t, testConfig(time.Second))
	public, err := hex.DecodeString(testKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	// answer returns a callback's answer to a signed or badly signed PING.
	tests := []struct {
		name    string
		answer  func(signed bool) int
		problem string // "" if it passes
	}{
		{"verifies", func(signed bool) int { return map[bool]int{true: 204, false: 401}[signed] }, ""},
		{"answers 200 and 403", func(signed bool) int { return map[bool]int{true: 200, false: 403}[signed] }, ""},
		{"takes anything", func(bool) int { return 204 }, "204 instead of 401 to a badly signed PING"},
		{"has another key", func(bool) int { return 401 }, testKey.Public()},
		{"is not there", func(bool) int { return 404 }, "404 instead of 204"},
		{"redirects", func(bool) int { return 302 }, "302 instead of 204"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, signed := verified(t, r, public)
				var ping struct {
					Version       int
					Type          *int
					ApplicationID string `json:"application_id"`
				}
				if err := json.Unmarshal(body, &ping); err != nil || ping.Version != 1 || ping.Type == nil || *ping.Type != 0 || ping.ApplicationID != "77" {
					t.Errorf("PING %s, %v", body, err)
				}
				if r.Header.Get("X-Own") != "1" || r.Header.Get("Content-Type") != "application/json" {
					t.Errorf("headers %v", r.Header)
				}
				w.WriteHeader(tt.answer(signed))
			}))
			defer srv.Close()
			err := c.Ping(t.Context(), &event.Listener{
				URL: srv.URL, Format: event.FormatDiscord, Headers: map[string]string{"x-own": "1"}, Secrets: []secret.Value{secret.New(testSecret)},
			}, 77)
			switch {
			case tt.problem == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.problem != "" && (err == nil || !strings.Contains(err.Error(), tt.problem) || strings.Contains(err.Error(), "\n")):
				t.Errorf("error %v, want one line with %q", err, tt.problem)
			}
		})
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	if err := c.Ping(t.Context(), &event.Listener{URL: gone.URL, Secrets: []secret.Value{secret.New(testSecret)}}, 77); err == nil || !strings.Contains(err.Error(), "did not answer a signed PING") {
		t.Errorf("without a server: %v", err)
	}
}
