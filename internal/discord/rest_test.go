package discord

import (
	"context"
	"errors"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/secret"
)

func TestRESTAnswers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		answer func(w http.ResponseWriter)
		want   string // in the error
	}{
		{"good", answer(200, `{"url":"wss://gateway.discord.gg","shards":9,"session_start_limit":{"total":1000,"remaining":999,"reset_after":14400000,"max_concurrency":1}}`), ""},
		{"refused", answer(401, `{"message":"401: Unauthorized","code":0}`), "put the current one into DISCORD_TOKEN"},
		{"server error", answer(502, `<html>`), "HTTP 502"},
		{"redirect", func(w http.ResponseWriter) { w.Header().Set("Location", "/other"); w.WriteHeader(302) }, "HTTP 302"},
		{"no JSON", answer(200, `<html>`), "parse"},
		{"no URL", answer(200, `{"shards":1}`), "not usable"},
		{"no shards", answer(200, `{"url":"wss://x"}`), "not usable"},
		{"endless", func(w http.ResponseWriter) { _, _ = w.Write([]byte(strings.Repeat(" ", 2<<20))) }, "parse"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/v10/gateway/bot" || r.Header.Get("Authorization") != "Bot tok" || r.Header.Get("User-Agent") != "agent" {
					t.Errorf("%s with %v", r.URL, r.Header)
				}
				tt.answer(w)
			}))
			defer srv.Close()
			c := NewREST(RESTConfig{URL: srv.URL + "/v10/", Token: secret.New("tok"), Agent: "agent"})
			defer c.Close()
			info, err := c.Gateway(t.Context())
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "tok\"") {
					t.Errorf("error %v, want %q", err, tt.want)
				}
				return
			}
			want := GatewayInfo{"wss://gateway.discord.gg", 9, StartLimit{1000, 999, 14400000, 1}}
			if err != nil || info != want {
				t.Errorf("%+v, %v", info, err)
			}
		})
	}
}

// TestStartsFitTheDatabase checks that a nonsensical number of session starts becomes
// one that a column of 32 bits can hold.
func TestStartsFitTheDatabase(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answer(200, `{"url":"wss://x","shards":1,"session_start_limit":{"total":1099511627776,"remaining":1099511627776,"reset_after":1,"max_concurrency":1}}`)(w)
	}))
	defer srv.Close()
	c := NewREST(RESTConfig{URL: srv.URL, Token: secret.New("tok")})
	defer c.Close()
	info, err := c.Gateway(t.Context())
	if err != nil || info.Limit.Total != math.MaxInt32 || info.Limit.Remaining != math.MaxInt32 {
		t.Errorf("%+v, %v", info.Limit, err)
	}
}

func answer(status int, body string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}
}

func TestInsist(t *testing.T) {
	t.Parallel()
	tries, reports := 0, 0
	start := time.Now()
	err := Insist(t.Context(), func(error) { reports++ }, func(context.Context) error {
		if tries++; tries == 1 {
			return &statusError{"/x", 429, 1200 * time.Millisecond}
		}
		return ErrUnauthorized
	})
	if !errors.Is(err, ErrUnauthorized) || tries != 2 || reports != 1 {
		t.Errorf("%v after %d tries, %d reports", err, tries, reports)
	}
	if waited := time.Since(start); waited < 1200*time.Millisecond {
		t.Errorf("tried again after %v, want at least the 1.2 s of Retry-After", waited)
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]time.Duration{
		"": 0, "x": 0, "-1": 0, "0.25": 250 * time.Millisecond, "64": 64 * time.Second, "1e300": 0, "NaN": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {in}}); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}
