package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// buildPrevious builds the server as it was before the newest migration, from the
// repository's history, and returns the path of the binary.
func buildPrevious(t *testing.T) string {
	t.Helper()
	git := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "git", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("git %s: %v: %s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if _, err := exec.LookPath("git"); err != nil || exec.CommandContext(t.Context(), "git", "rev-parse", "--git-dir").Run() != nil {
		t.Skip("this test builds the release before from the history: it needs git and a clone")
	}
	if git("rev-parse", "--is-shallow-repository") == "true" {
		t.Fatal("the clone is shallow: fetch the whole history (git fetch --unshallow), from which this test builds the release before")
	}
	files, err := filepath.Glob("../../migrations/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	previous := "HEAD" // if the newest migration is not committed yet
	if added := git("log", "--diff-filter=A", "--format=%H", "-1", "--", slices.Max(files)); added != "" {
		previous = added + "^"
	}
	dir := filepath.Join(t.TempDir(), "previous")
	git("worktree", "add", "--detach", "--force", dir, previous)
	t.Cleanup(func() {
		out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "git", "worktree", "remove", "--force", dir).CombinedOutput()
		if err != nil {
			t.Errorf("git worktree remove: %v: %s", err, out)
		}
	})
	path := filepath.Join(dir, "gatehook-previous")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./cmd/server")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the release before (%s): %v: %s", previous, err, out)
	}
	return path
}

// TestRollingUpgrade starts a server beside one of the release before, under load. The
// newest migration, which it applies, holds up neither; they share the shards until the
// old one is stopped.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	path := buildPrevious(t)
	discord := startDiscordAs(t, discordtest.Config{Shards: manyShards})
	url := "DATABASE_URL=" + postgrestest.EmptyURL(t)
	w := &pair{t: t, discord: discord, a: newNamed(t, discord, "old", url), b: newNamed(t, discord, "new", url), ledger: newLedger(t)}
	w.a.path = path
	w.a.start()
	awaitShards(t, discord, manyShards)
	for _, name := range []string{"MESSAGE_CREATE", "RAW_MESSAGE_CREATE"} {
		w.ledger.callback(w.a, name)
	}
	w.stop = load(t, discord, w.ledger, 5*time.Millisecond)
	w.flow(200)
	w.b.start()
	if out := w.b.output(); !strings.Contains(out, "applied a migration") {
		t.Errorf("the new server has migrated nothing:\n%s", w.b.lastLines(20))
	}
	w.awaitFair()
	w.flow(400)
	for _, p := range []*process{w.a, w.b} {
		for _, trouble := range []string{"heartbeat failed", "commit failed", "under a new number"} {
			if strings.Contains(p.output(), trouble) {
				t.Errorf("%s: %s:\n%s", p.name, trouble, warnings(p.output()))
			}
		}
	}
	w.a.drain()
	w.awaitAll(w.b)
	w.settle()
}

// TestHealthWhileStarting checks that a server that waits for its database lives, and is
// not ready.
func TestHealthWhileStarting(t *testing.T) {
	t.Parallel()
	free := func() net.Listener {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	silent, api := free(), free()
	t.Cleanup(func() { _ = silent.Close() })
	address := api.Addr().String()
	if err := api.Close(); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "gatehook-test-data-") //nolint:usetesting // as in newNamed
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := newProcess(t, startDiscord(t), "DATABASE_URL=postgres://u:p@"+silent.Addr().String()+"/d", "GATEHOOK_ADDR="+address)
	p.url = "http://" + address
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path)
	cmd.Env = append(slices.Clip(p.env), "DISCORD_TOKEN=a")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "alive", func() (bool, string) {
		status, body, err := p.ask("/healthz")
		return status == http.StatusOK && strings.Contains(body, `"ok"`), fmt.Sprint(status, body, err)
	})
	for _, path := range []string{"/readyz", "/listeners"} {
		if status, body := p.get(path); status != http.StatusServiceUnavailable || !strings.Contains(body, "is starting") {
			t.Errorf("%s while starting: %d %s", path, status, body)
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("stopped while starting: %v", err)
	}
}
