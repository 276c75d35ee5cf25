package main

import (
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// dump returns every row of every table of a database, as text.
func dump(t *testing.T, url string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context()) //nolint:errcheck // read only
	rows, err := conn.Query(t.Context(), `SELECT format('SELECT t::text FROM %I.%I t', schemaname, tablename) FROM pg_tables WHERE schemaname = 'public'`)
	if err != nil {
		t.Fatal(err)
	}
	queries, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(queries) < 10 {
		t.Fatalf("%d tables, %v", len(queries), err)
	}
	var all strings.Builder
	for _, query := range queries {
		rows, err := conn.Query(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&all, "%s\n%s\n", query, strings.Join(lines, "\n"))
	}
	return all.String()
}

// TestDumpHoldsNoSecret gives a server without a key a first key, and then another
// one. It checks that callbacks notice no difference, and that a dump of the database
// contains no secret.
func TestDumpHoldsNoSecret(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	url := postgrestest.URL(t)
	const other = "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0efeeedecebeae9e8e7e6e5e4e3e2e1e0"
	const token = "a-token-of-the-receiver"
	p := newProcess(t, discord, "DATABASE_URL="+url, "GATEHOOK_ENCRYPTION_KEY=")
	p.start()
	if !strings.Contains(p.output(), "secrets are stored in plain text: set GATEHOOK_ENCRYPTION_KEY") {
		t.Error("the log does not warn that secrets are stored in plain text")
	}
	callback := newSwitchable(t)
	type listener struct{ ID, Secret string }
	created := decode[listener](t, p, "POST", "/listeners", fmt.Sprintf(
		`{"event":"MESSAGE_CREATE","url":%q,"format":"chat-sdk","headers":{"x-discord-gateway-token":%q}}`, callback.URL, token), http.StatusCreated)
	secrets := []string{created.Secret, token}
	if all := dump(t, url); !strings.Contains(all, token) || !strings.Contains(all, created.Secret) {
		t.Error("the dump does not show secrets in plain text, so this test can't find them")
	}
	for _, keys := range []string{testEncryptionKey, other + "," + testEncryptionKey, other} {
		if code := p.stop(syscall.SIGTERM); code != 0 {
			t.Errorf("the server ended with %d", code)
		}
		p.env = append(p.env, "GATEHOOK_ENCRYPTION_KEY="+keys)
		p.start()
		secrets = append(secrets, decode[listener](t, p, "POST", "/listeners/"+created.ID+"/rotate-secret", "", http.StatusOK).Secret)
		decode[struct{}](t, p, "POST", "/signing-keys/rotate", "", http.StatusOK)
		decode[attemptShown](t, p, "POST", "/listeners/"+created.ID+"/test", "", http.StatusOK)
		callback.mu.Lock()
		header, body := callback.headers[len(callback.headers)-1], callback.bodies[len(callback.bodies)-1]
		callback.mu.Unlock()
		newest := secrets[len(secrets)-1]
		w, err := standardwebhooks.NewWebhook(newest)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Verify([]byte(body), header); err != nil || header.Get("X-Discord-Gateway-Token") != token {
			t.Errorf("with %.8s…: %v, token %q", keys, err, header.Get("X-Discord-Gateway-Token"))
		}
		all := dump(t, url)
		for _, s := range append(secrets, testKey, discord.Token(), testEncryptionKey, other) {
			if strings.Contains(all, s) || strings.Contains(all, strings.TrimPrefix(s, "whsec_")) {
				t.Errorf("with %.8s… the dump contains %.12s…", keys, s)
			}
		}
		for _, s := range secrets {
			if strings.Contains(p.output(), s) {
				t.Errorf("the log contains %.12s…", s)
			}
		}
	}
	if code := p.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("the server ended with %d", code)
	}
	before := dump(t, url)
	for _, keys := range []string{"", testEncryptionKey} {
		path, err := binary()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), path)
		cmd.Env = append(append([]string{}, p.env...), "DISCORD_TOKEN="+discord.Token(), "GATEHOOK_ENCRYPTION_KEY="+keys)
		out, err := cmd.CombinedOutput()
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		if last := lines[len(lines)-1]; err == nil || !strings.Contains(last, "GATEHOOK_ENCRYPTION_KEY does not contain") || strings.Contains(last, "{") {
			t.Errorf("without the key: %v, %s", err, out)
		}
	}
	after := dump(t, url)
	for _, table := range []string{"listeners", "listener_secrets", "signing_keys"} {
		rows := func(all string) string {
			_, rest, _ := strings.Cut(all, "FROM public."+table+" t\n")
			found, _, _ := strings.Cut(rest, "SELECT t::text")
			return found
		}
		if rows(before) == "" || rows(before) != rows(after) {
			t.Errorf("a server without the key changed %s", table)
		}
	}
}
