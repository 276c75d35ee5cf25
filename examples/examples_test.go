//go:build examples

// Package examples_test runs every example on its platform's own runtime, as a
// listener of the real server, which is connected to a simulated Discord.
// `make examples` installs the dependencies and runs it.
package examples_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

func TestMain(m *testing.M) { postgrestest.Main(m) }

// examples lists the directories, the format of each example's deliveries, and the
// command that runs it.
var examples = []struct {
	name   string
	format string
	run    []string
}{
	{"cloudflare-workers", "standard", node("cloudflare-workers")},
	{"aws-lambda", "standard", node("aws-lambda")},
	{"vercel-nextjs", "standard", node("vercel-nextjs")},
	{"go", "standard", []string{"go", "run", "-C", "go", "."}},
	{"python", "standard", []string{"python/.venv/bin/python", "python/receiver.py"}},
	{"php", "standard", node("php")},
	{"google-cloud-functions", "standard", node("google-cloud-functions")},
	{"deno", "standard", deno},
	{"discord-format", "discord", node("discord-format")},
	{"carbon", "carbon", bot("carbon")},
	{"chat-sdk", "chat-sdk", bot("chat-sdk")},
}

func node(name string) []string { return []string{"node", "internal/run/" + name + ".mjs"} }

func bot(name string) []string { return []string{"node", "internal/run/fetch.mjs", name} }

// deno runs the example with no other permissions than these.
var deno = []string{
	"internal/deno", "run", "--unstable-kv", "--allow-net=127.0.0.1,0.0.0.0", "--allow-env", "--allow-read", "--allow-write",
	"--config", "deno/deno.json", "deno/main.ts",
}

func TestExamples(t *testing.T) {
	s := startServer(t)
	for _, e := range examples {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			switch e.format {
			case "standard":
				standard(t, s, e.run)
			case "discord":
				discord(t, s, e.run, "", answers)
			case "carbon":
				discord(t, s, e.run, "/events", func(t *testing.T, s *server, tap *tap, channel string) {
					t.Helper()
					answersSoon(t, s, tap, channel)
				})
			case "chat-sdk":
				chatSDK(t, s, e.run)
			}
		})
	}
}

// standard checks an example that verifies Standard Webhooks' signatures.
func standard(t *testing.T, s *server, run []string) {
	t.Helper()
	secret := newSecret()
	example := start(t, run, "GATEHOOK_SECRET="+secret, "KV_PATH=:memory:", "MEMORY="+filepath.Join(t.TempDir(), "memory"), "DISCORD_API_URL="+s.rest.url)
	// Without the tap, which changes how the names of headers are written.
	channel := s.newChannel()
	s.register(t, fmt.Sprintf(`{"event":"MESSAGE_CREATE","url":%q,"secret":%q,"filter":{"channel_ids":[%q]}}`,
		strings.Replace(example, "//0.0.0.0:", "//127.0.0.1:", 1), secret, channel))
	s.say(t, channel, "!ping", false)
	s.rest.wait(t, channel, 1)
	channel = s.newChannel()
	tap := newTap(t, example)
	s.register(t, fmt.Sprintf(`{"event":"MESSAGE_CREATE","url":%q,"secret":%q,"filter":{"channel_ids":[%q]},"ordering":"channel"}`, tap.url, secret, channel))
	answers(t, s, tap, channel)
	refusesStandard(t, s, channel, example, secret, tap.last())
}

// chatSDK checks the bot that verifies Standard Webhooks' signatures before the Chat
// SDK sees a delivery.
func chatSDK(t *testing.T, s *server, run []string) {
	t.Helper()
	secret := newSecret()
	example := start(t, run, "GATEHOOK_SECRET="+secret, "DISCORD_API_URL="+s.rest.url, "DISCORD_CLIENT_ID=1001", "DISCORD_PUBLIC_KEY="+s.publicKey(t))
	channel := s.newChannel()
	tap := newTap(t, example)
	s.register(t, fmt.Sprintf(`{"event":"MESSAGE_CREATE","url":%q,"secret":%q,"format":"chat-sdk","headers":{"x-discord-gateway-token":%q},"filter":{"channel_ids":[%q]},"ordering":"channel"}`,
		tap.url, secret, botToken, channel))
	last := answersSoon(t, s, tap, channel)
	// The SDK answers a message only once, whatever the delivery's id, so the
	// forgeries need another message.
	delivery := tap.last()
	delivery.body = bytes.ReplaceAll(delivery.body, []byte(last), []byte(s.id()))
	refusesStandard(t, s, channel, example, secret, delivery)
}

// refusesStandard sends forgeries of a delivery to an example that verifies Standard
// Webhooks' signatures.
func refusesStandard(t *testing.T, s *server, channel, example, secret string, delivery delivery) {
	t.Helper()
	sign := func(secret string, at time.Time) http.Header {
		w, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		header := delivery.header.Clone()
		header.Set("webhook-id", "dlv_of-the-test")
		signature, err := w.Sign(header.Get("webhook-id"), at, delivery.body)
		if err != nil {
			t.Fatal(err)
		}
		header.Set("webhook-timestamp", strconv.FormatInt(at.Unix(), 10))
		header.Set("webhook-signature", signature)
		return header
	}
	refuses(t, s, channel, example, delivery.body, map[string]http.Header{
		"another secret":                sign(newSecret(), time.Now()),
		"a timestamp six minutes old":   sign(secret, time.Now().Add(-6*time.Minute)),
		"a timestamp six minutes ahead": sign(secret, time.Now().Add(6*time.Minute)),
	}, sign(secret, time.Now()))
}

// discord checks an example that verifies Ed25519 signatures. The server does not
// reveal its private key, so the forgeries go to a second process that trusts a key
// of the test.
func discord(t *testing.T, s *server, run []string, path string, answers func(*testing.T, *server, *tap, string)) {
	t.Helper()
	env := []string{"DISCORD_API_URL=" + s.rest.url, "DISCORD_CLIENT_ID=1001"}
	tap := newTap(t, start(t, run, append(env, "GATEHOOK_PUBLIC_KEY="+s.publicKey(t))...)+path)
	channel := s.newChannel()
	s.register(t, fmt.Sprintf(`{"event":"MESSAGE_CREATE","url":%q,"format":"discord","filter":{"channel_ids":[%q]},"ordering":"channel"}`, tap.url, channel))
	answers(t, s, tap, channel)

	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	example := start(t, run, append(env, "GATEHOOK_PUBLIC_KEY="+hex.EncodeToString(public))...) + path
	delivery := tap.last()
	sign := func(key ed25519.PrivateKey, at time.Time) http.Header {
		header := delivery.header.Clone()
		header.Set("webhook-id", "dlv_of-the-test")
		timestamp := strconv.FormatInt(at.Unix(), 10)
		header.Set("X-Signature-Timestamp", timestamp)
		header.Set("X-Signature-Ed25519", hex.EncodeToString(ed25519.Sign(key, append([]byte(timestamp), delivery.body...))))
		return header
	}
	refuses(t, s, channel, example, delivery.body, map[string]http.Header{
		"another key":                 sign(other, time.Now()),
		"a timestamp six minutes old": sign(private, time.Now().Add(-6*time.Minute)),
	}, sign(private, time.Now()))
}

// answers dispatches messages and checks the answers in the channel. The first answer
// to each delivery gets lost, so that all are delivered twice. For one of them,
// Discord is down the first time.
func answers(t *testing.T, s *server, tap *tap, channel string) {
	t.Helper()
	s.say(t, channel, "hello", false)
	s.say(t, channel, "!ping", true)
	s.rest.fail(channel)
	asked := []string{s.say(t, channel, "!ping", false), s.say(t, channel, "!ping", false)}
	for range 4 {
		if d := tap.wait(t); !slices.Equal(d.accepted, []int{d.accepted[0], d.accepted[0]}) || d.accepted[0]/100 != 2 {
			t.Errorf("the two attempts of a delivery were answered %v", d.accepted)
		}
	}
	var got []string
	for _, m := range s.rest.messages(channel) {
		if m.Content != "Pong!" || !m.EnforceNonce {
			t.Errorf("unexpected message in the channel: %+v", m)
		}
		got = append(got, m.Nonce)
	}
	if !slices.Equal(got, asked) {
		t.Errorf("answered the messages %v, want each of %v once", got, asked)
	}
	if statuses := tap.refused(); !slices.Equal(statuses, []int{http.StatusInternalServerError}) {
		t.Errorf("deliveries were refused with %v, want one 500, when Discord was down", statuses)
	}
}

// answersSoon is like answers, for a framework that accepts a delivery before it handles
// it, and so gets no second attempt if handling fails.
func answersSoon(t *testing.T, s *server, tap *tap, channel string) (last string) {
	t.Helper()
	for n, content := range []string{"hello", "!ping", "!ping"} {
		last = s.say(t, channel, content, false)
		if d := tap.wait(t); len(d.accepted) != 2 || d.accepted[0]/100 != 2 || d.accepted[1]/100 != 2 {
			t.Errorf("the two attempts of a delivery were answered %v", d.accepted)
		}
		s.rest.wait(t, channel, n)
	}
	return last
}

// refuses checks that forged deliveries are answered 401 and do nothing. The genuine
// one must be accepted, which shows that nothing else was wrong with the others.
func refuses(t *testing.T, s *server, channel, url string, body []byte, forged map[string]http.Header, good http.Header) {
	t.Helper()
	before := len(s.rest.messages(channel))
	for what, header := range forged {
		if status := post(t.Context(), t, url, header, body); status != http.StatusUnauthorized {
			t.Errorf("%s: %d, want 401", what, status)
		}
	}
	changed := []byte(strings.Replace(string(body), "!ping", "!pinh", 1))
	if status := post(t.Context(), t, url, good, changed); status != http.StatusUnauthorized {
		t.Errorf("a changed byte: %d, want 401", status)
	}
	unsigned := http.Header{"Content-Type": {"application/json"}, "Webhook-Id": {"dlv_of-the-test"}}
	if status := post(t.Context(), t, url, unsigned, body); status != http.StatusUnauthorized {
		t.Errorf("no signature: %d, want 401", status)
	}
	if n := len(s.rest.messages(channel)); n != before {
		t.Errorf("%d forged deliveries were answered in the channel", n-before)
	}
	if status := post(t.Context(), t, url, good, body); status/100 != 2 {
		t.Errorf("the genuine delivery: %d, want 2xx", status)
	}
	s.rest.wait(t, channel, before+1)
}
