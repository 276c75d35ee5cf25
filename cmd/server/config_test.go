package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
)

func env(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestConfigDefaults(t *testing.T) {
	t.Parallel()
	c, err := readConfig(env("DISCORD_TOKEN", " Bot abc.def "), true)
	if err != nil {
		t.Fatal(err)
	}
	if c.token.Reveal() != "abc.def" || c.discordURL != "https://discord.com/api/v10" || c.addr != "127.0.0.1:8080" || c.dataDir != ".gatehook" ||
		!c.intents.auto || len(c.schedule) != 9 || c.attemptTimeout != 15*time.Second || c.retention != 168*time.Hour ||
		c.shutdownTimeout != 30*time.Second || c.logFormat != "" || !c.databaseURL.Empty() || len(c.allowTargets) != 0 ||
		c.compression != discord.ZlibStream {
		t.Errorf("%+v", c)
	}
	c, err = readConfig(env("DISCORD_TOKEN", "a", "GATEHOOK_INTENTS", "GUILDS,guild_messages", "GATEHOOK_ALLOW_TARGETS", "127.0.0.0/8, ::1/128"), true)
	if err != nil || c.intents != (intents{fixed: event.IntentGuilds | event.IntentGuildMessages}) || len(c.allowTargets) != 2 {
		t.Errorf("%+v, %v", c, err)
	}
	for s, want := range map[string]discord.Compression{
		"zlib-stream": discord.ZlibStream, " ZSTD-stream ": discord.ZstdStream, "none": discord.NoCompression,
	} {
		if c, err := readConfig(env("GATEHOOK_COMPRESSION", s), false); err != nil || c.compression != want || c.unnamedCompression != want {
			t.Errorf("GATEHOOK_COMPRESSION=%q: %q, %q, %v", s, c.compression, c.unnamedCompression, err)
		}
	}
	if c, err := readConfig(env(), false); err != nil || c.unnamedCompression != "" {
		t.Errorf("without GATEHOOK_COMPRESSION: %q, %v", c.unnamedCompression, err)
	}
}

// TestConfigProxy checks the conventional variables, and the hosts that they
// exclude by convention.
func TestConfigProxy(t *testing.T) {
	t.Parallel()
	proxyOf := func(getenv func(string) string, target string) string {
		t.Helper()
		c, err := readConfig(getenv, false)
		u, urlErr := url.Parse(target)
		if err := errors.Join(err, urlErr); err != nil || c.proxy == nil {
			t.Fatalf("proxy set %v, %v", c.proxy != nil, err)
		}
		by, err := c.proxy(u)
		if err != nil {
			t.Fatal(err)
		}
		if by == nil {
			return ""
		}
		return by.String()
	}
	for _, tt := range []struct {
		env          []string
		target, want string
	}{
		{[]string{"HTTPS_PROXY", "http://u:p@proxy.example:3128"}, "https://a.example", "http://u:p@proxy.example:3128"},
		{[]string{"https_proxy", "proxy.example:3128"}, "https://a.example", "http://proxy.example:3128"},
		{[]string{"HTTPS_PROXY", "socks5://10.0.0.1:1080"}, "https://a.example", "socks5://10.0.0.1:1080"},
		{[]string{"HTTPS_PROXY", "http://proxy.example", "NO_PROXY", "b.example,10.0.0.0/8"}, "https://x.b.example", ""},
		{[]string{"HTTPS_PROXY", "http://proxy.example", "no_proxy", "b.example,10.0.0.0/8"}, "https://10.1.2.3", ""},
		{[]string{"HTTPS_PROXY", "http://proxy.example"}, "https://127.0.0.1", ""},
		{[]string{"HTTPS_PROXY", "http://proxy.example"}, "http://a.example", ""},
	} {
		if got := proxyOf(env(tt.env...), tt.target); got != tt.want {
			t.Errorf("%v: %s goes through %q, want %q", tt.env, tt.target, got, tt.want)
		}
	}
	if c, err := readConfig(env("HTTP_PROXY", "http://proxy.example"), false); err != nil || c.proxy != nil {
		t.Errorf("HTTP_PROXY alone: %v", err)
	}
}

// TestConfigProblems checks that all invalid values are reported at once, each
// with the expected form, and that no secret is shown.
func TestConfigProblems(t *testing.T) {
	t.Parallel()
	values := []string{
		"DISCORD_TOKEN", "hunter2 hunter2", "DATABASE_URL", "mysql://u:hunter2@h/d", "DISCORD_API_URL", "discord.com",
		"GATEHOOK_ADDR", "8080", "GATEHOOK_PPROF_ADDR", "0.0.0.0:6060", "GATEHOOK_INTENTS", "EVERYTHING", "GATEHOOK_SHARDS", "many", "GATEHOOK_ALLOW_TARGETS", "localhost",
		"GATEHOOK_RETRY_SCHEDULE", "soon", "GATEHOOK_ATTEMPT_TIMEOUT", "0s", "GATEHOOK_RETENTION", "week",
		"GATEHOOK_SHUTDOWN_TIMEOUT", "-1s", "GATEHOOK_COMPRESSION", "gzip", "GATEHOOK_ENCRYPTION_KEY", "hunter2", "HTTPS_PROXY", "ftp://user:hunter2@proxy.example", "GATEHOOK_LOG_FORMAT", "xml", "GATEHOOK_LOG_LEVEL", "loud",
	}
	_, err := readConfig(env(values...), true)
	if err == nil {
		t.Fatal("invalid values were accepted")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != len(values)/2 {
		t.Errorf("%d lines for %d problems:\n%v", len(lines), len(values)/2, err)
	}
	for i := 0; i < len(values); i += 2 {
		found := false
		for _, line := range lines {
			secret := strings.Contains(values[i+1], "hunter2")
			found = found || strings.HasPrefix(line, values[i]+"=") && strings.Contains(line, "expected ") &&
				(secret || strings.Contains(line, values[i+1]))
		}
		if !found {
			t.Errorf("%s=%s is not reported:\n%v", values[i], values[i+1], err)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a secret is shown:\n%v", err)
	}
	if _, err := readConfig(env(), true); err == nil || !strings.Contains(err.Error(), "DISCORD_TOKEN is not set") {
		t.Errorf("without a token: %v", err)
	}
	if _, err := readConfig(env("DISCORD_TOKEN", "Bot "), true); err == nil || !strings.Contains(err.Error(), "DISCORD_TOKEN is not set") {
		t.Errorf("with a prefix but no token: %v", err)
	}
	if _, err := readConfig(env(), false); err != nil {
		t.Errorf("migrate without a token: %v", err)
	}
}

// TestSecretsOfTheEnvironment: a password that is not percent-encoded, or a key that is too
// short, is refused with what to do, and nothing of it is shown.
func TestSecretsOfTheEnvironment(t *testing.T) {
	t.Parallel()
	for _, password := range []string{"hunter/2", "1234/hunter2", "1234?hunter2", "1234#hunter2", "hun:ter/2", "a@hunter2/b", "1@2/hunter2@", "[hunter2", "%hunter2", "a@hunter2"} {
		_, err := readConfig(env("DATABASE_URL", "postgres://user:"+password+"@db.example:5432/gatehook"), false)
		if err == nil || !strings.Contains(err.Error(), "percent-encode") || strings.Contains(err.Error(), "hun") || strings.Contains(err.Error(), "\n") {
			t.Errorf("the password %s: %v", password, err)
		}
	}
	for _, password := range []string{"hunter2", "hunter%2F2", "a:b", "a%40b"} {
		c, err := readConfig(env("DATABASE_URL", "postgres://user:"+password+"@db.example:5432/gatehook?sslmode=require"), false)
		if err != nil {
			t.Errorf("the password %s: %v", password, err)
			continue
		}
		at, err := pgx.ParseConfig(c.databaseURL.Reveal())
		if err != nil || at.Host != "db.example" || at.Database != "gatehook" || at.User != "user" {
			t.Errorf("the password %s: connects to %v, %v", password, at, err)
		}
	}
	if _, err := readConfig(env("GATEHOOK_API_KEY", "hunter2hunter22"), false); err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "16") {
		t.Errorf("a key of 15 characters: %v", err)
	}
	if _, err := readConfig(env("GATEHOOK_API_KEY", "hunter2hunter222"), false); err != nil {
		t.Errorf("a key of 16 characters: %v", err)
	}
}

// TestDemoUsesItsOwn: the demo runs where the variables of a real server are set.
func TestDemoUsesItsOwn(t *testing.T) {
	t.Parallel()
	got, err := demoConfig(env("DATABASE_URL", "postgres://pooler/gatehook", "DATABASE_DIRECT_URL", "postgres://database/gatehook",
		"DISCORD_TOKEN", "token-of-the-bot", "DISCORD_API_URL", "http://127.0.0.1:1", "GATEHOOK_SHARDS", "2-3/8", "GATEHOOK_INTENTS", "512"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := demoConfig(env())
	if err != nil {
		t.Fatal(err)
	}
	if got.databaseURL != want.databaseURL || got.directURL != want.directURL || got.token != want.token ||
		got.discordURL != want.discordURL || got.shards != want.shards || !reflect.DeepEqual(got.intents, want.intents) {
		t.Errorf("the demo uses what belongs to a real server: %+v, want %+v", got, want)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"serve"}, {"migrate", "now"}, {"demo", "--nope"}, {"demo", "extra"}} {
		var stderr bytes.Buffer
		err := run(t.Context(), args, env(), io.Discard, &stderr)
		if wrong := strings.TrimLeft(args[len(args)-1], "-"); !errors.Is(err, errUsage) || !strings.Contains(stderr.String(), wrong) {
			t.Errorf("%v: %v, %s", args, err, &stderr)
		}
	}
	for _, args := range [][]string{{"help"}, {"--help"}, {"-h"}, {"version"}, {"--version"}, {"demo", "--help"}} {
		var out bytes.Buffer
		if err := run(t.Context(), args, env(), &out, &out); err != nil || out.Len() == 0 {
			t.Errorf("%v: %v, %s", args, err, &out)
		}
	}
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, "a.json"), []byte("not JSON"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"demo", "--rate", "0"}, {"demo", "--frames", t.TempDir()}, {"demo", "--frames", broken}, {"demo", "--for", "-1s"},
	} {
		if err := run(t.Context(), args, env(), &bytes.Buffer{}, &bytes.Buffer{}); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestDataDirKeepsItsNameAndKey(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a", "b")
	first, err := openDataDir(path)
	if err != nil {
		t.Fatal(err)
	}
	key, fresh, err := first.apiKey()
	if err != nil || !fresh || !strings.HasPrefix(key.Reveal(), "gk_") {
		t.Errorf("the first key: fresh %v, %v", fresh, err)
	}
	if info, err := os.Stat(filepath.Join(path, apiKeyFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info, err)
	}
	// While the first is open, a second gets another name.
	second, err := openDataDir(path)
	if err == nil || second.name == first.name {
		t.Errorf("a second one at the same time: %v", err)
	}
	if err := errors.Join(second.close(), first.close()); err != nil {
		t.Error(err)
	}
	again, err := openDataDir(path)
	if err != nil || again.name != first.name {
		t.Errorf("after a restart: %v, %v, want %v", err, again.name, first.name)
	}
	defer again.close() //nolint:errcheck // read only
	if same, fresh, err := again.apiKey(); err != nil || fresh || same != key {
		t.Errorf("the key after a restart: fresh %v, %v", fresh, err)
	}
}

// TestLifecycle checks that parts stop in reverse order, each waited for; that a
// part that does not end is killed after the timeout; and that a part that fails
// ends the wait.
func TestLifecycle(t *testing.T) {
	t.Parallel()
	var log output
	l := newLifecycle(t.Context(), slog.New(slog.NewTextHandler(&log, nil)))
	var order []string
	add := func(name string) {
		stop := make(chan struct{})
		l.add(name, func(context.Context) error { <-stop; return nil }, func() { order = append(order, name); close(stop) })
	}
	add("first")
	l.add("stuck", func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }, func() { order = append(order, "stuck") })
	add("last")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.wait(ended); err != nil {
		t.Errorf("wait: %v", err)
	}
	if err := l.stop(50 * time.Millisecond); err != nil || !strings.Contains(log.String(), errTooLate.Error()) {
		t.Errorf("stop: %v, log: %s", err, &log)
	}
	if diff := cmp.Diff([]string{"last", "stuck", "first"}, order); diff != "" {
		t.Error(diff)
	}
	broken := errors.New("broken")
	l = newLifecycle(t.Context(), slog.New(slog.DiscardHandler))
	l.add("broken", func(context.Context) error { return broken }, func() {})
	if err := l.wait(t.Context()); !errors.Is(err, broken) || !strings.Contains(err.Error(), "broken: ") {
		t.Errorf("wait: %v", err)
	}
	if err := l.stop(time.Second); err != nil {
		t.Errorf("stop repeats the error: %v", err)
	}
	l = newLifecycle(t.Context(), slog.New(slog.DiscardHandler))
	stop := make(chan struct{})
	l.add("broken at the end", func(context.Context) error { <-stop; return broken }, func() { close(stop) })
	if err := l.stop(time.Minute); !errors.Is(err, broken) {
		t.Errorf("stop in time: %v", err)
	}
}

// TestPprofAddr checks that only loopback addresses are accepted.
func TestPprofAddr(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"", "127.0.0.1:6060", "127.1.2.3:0", "[::1]:6060", "localhost:6060"} {
		if c, err := readConfig(env("GATEHOOK_PPROF_ADDR", addr), false); err != nil || c.pprofAddr != addr {
			t.Errorf("%q: %q, %v", addr, c.pprofAddr, err)
		}
	}
	for _, addr := range []string{":6060", "0.0.0.0:6060", "[::]:6060", "10.0.0.1:6060", "example.com:6060", "127.0.0.1", "127.0.0.1:70000", "6060"} {
		if _, err := readConfig(env("GATEHOOK_PPROF_ADDR", addr), false); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", addr, err)
		}
	}
}
