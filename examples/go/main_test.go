package main

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const (
	secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	other  = "whsec_UGlrYWNodSBpcyBub3QgYSBzZWNyZXQgYXQgYWxs"
	ping   = `{"type":"MESSAGE_CREATE","data":{"id":"1","channel_id":"2","content":"!ping","author":{"id":"3"}}}`
)

func TestReceiver(t *testing.T) {
	answers, status := 0, http.StatusOK
	discord := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/channels/2/messages" || r.Header.Get("Authorization") != "Bot token" {
			t.Errorf("%s with %q", r.URL, r.Header.Get("Authorization"))
		}
		answers++
		w.WriteHeader(status)
	}))
	defer discord.Close()
	webhook, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	rc := &receiver{webhook: webhook, memory: newProcessMemory(2), api: discord.URL, token: "token"}

	now := time.Now()
	for _, step := range []struct {
		what, id, secret string
		signed, body     string
		at               time.Time
		discord          int
		want, answers    int
	}{
		{"a command", "dlv_1", secret, ping, ping, now, 200, 204, 1},
		{"its second attempt", "dlv_1", secret, ping, ping, now, 200, 204, 0},
		{"another secret", "dlv_2", other, ping, ping, now, 200, 401, 0},
		{"a changed byte", "dlv_2", secret, ping, strings.Replace(ping, "2", "3", 1), now, 200, 401, 0},
		{"an old timestamp", "dlv_2", secret, ping, ping, now.Add(-6 * time.Minute), 200, 401, 0},
		{"Discord is down", "dlv_2", secret, ping, ping, now, 500, 500, 1},
		{"and up again", "dlv_2", secret, ping, ping, now, 200, 204, 1},
		{"no JSON", "dlv_3", secret, "{", "{", now, 200, 500, 0},
	} {
		signer, err := standardwebhooks.NewWebhook(step.secret)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := signer.Sign(step.id, step.at, []byte(step.signed))
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(step.body))
		r.Header.Set("webhook-id", step.id)
		r.Header.Set("webhook-timestamp", strconv.FormatInt(step.at.Unix(), 10))
		r.Header.Set("webhook-signature", signature)
		answers, status = 0, step.discord
		w := httptest.NewRecorder()
		rc.ServeHTTP(w, r)
		if w.Code != step.want || answers != step.answers {
			t.Errorf("%s: %d with %d answers, want %d with %d", step.what, w.Code, answers, step.want, step.answers)
		}
	}
}
