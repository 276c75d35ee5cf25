package delivery

import (
	"bytes"
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

// verified tells whether a request is signed as Discord signs (Discord:
// Security and Authorization).
func verified(t *testing.T, r *http.Request, public ed25519.PublicKey) (body []byte, ok bool) {
	t.Helper()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Error(err)
	}
	signature, err := hex.DecodeString(r.Header.Get("X-Signature-Ed25519"))
	return body, err == nil && ed25519.Verify(public, append([]byte(r.Header.Get("X-Signature-Timestamp")), body...), signature)
}

// TestSignedLikeDiscord: what goes out in the format discord is signed over the
// timestamp and the body, beside the usual signature.
func TestSignedLikeDiscord(t *testing.T) {
	t.Parallel()
	public, ok := testKey.private.Public().(ed25519.PublicKey)
	if !ok {
		t.Fatal("no public key")
	}
	requests := make(chan *http.Request, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, ok := verified(t, r, public)
		if !ok {
			t.Error("the signature does not verify")
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		requests <- r
	}))
	defer srv.Close()
	l := testListener(srv.URL)
	l.Format = event.FormatDiscord
	if r := send(t, newTestSender(t, time.Minute), l); r.err != nil {
		t.Fatal(r.err)
	}
	r := <-requests
	if r.Header.Get("Webhook-Timestamp") != r.Header.Get("X-Signature-Timestamp") || !strings.HasPrefix(r.Header.Get("Webhook-Signature"), "v1,") {
		t.Errorf("headers %v", r.Header)
	}
	l.Format = event.FormatStandard
	srv.Config.Handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { requests <- r })
	if r := send(t, newTestSender(t, time.Minute), l); r.err != nil {
		t.Fatal(r.err)
	}
	if r := <-requests; r.Header.Get("X-Signature-Ed25519") != "" {
		t.Error("the format standard is signed with Ed25519")
	}
}

// TestPing: a callback is taken if it accepts what is signed and refuses what
// is not, and else it is said what went wrong.
func TestPing(t *testing.T) {
	t.Parallel()
	b := setup(t, Config{AttemptTimeout: time.Second, Application: func() event.Snowflake { return 77 }})
	public, err := hex.DecodeString(b.keyring.newest().public())
	if err != nil {
		t.Fatal(err)
	}
	// answer returns what a callback answers to a PING that is, or is not,
	// well signed.
	tests := []struct {
		name    string
		answer  func(signed bool) int
		problem string // "" if it is taken
	}{
		{"verifies", func(signed bool) int { return map[bool]int{true: 204, false: 401}[signed] }, ""},
		{"answers 200 and 403", func(signed bool) int { return map[bool]int{true: 200, false: 403}[signed] }, ""},
		{"takes anything", func(bool) int { return 204 }, "204 instead of 401 to a badly signed PING"},
		{"has another key", func(bool) int { return 401 }, b.keyring.newest().public()},
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
			err := b.Ping(t.Context(), &event.Listener{
				URL: srv.URL, Format: event.FormatDiscord, Headers: map[string]string{"x-own": "1"}, Secrets: []secret.Value{secret.New(testSecret)},
			})
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
	if err := b.Ping(t.Context(), &event.Listener{URL: gone.URL, Secrets: []secret.Value{secret.New(testSecret)}}); err == nil || !strings.Contains(err.Error(), "did not answer a signed PING") {
		t.Errorf("nobody there: %v", err)
	}
}
