package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// output is a buffer that the server and the test share.
type output struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// TestUnknownTokenEndsTheServer checks that a token that Discord refuses ends the
// server, with one line that says so without showing the token.
func TestUnknownTokenEndsTheServer(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	var stdout, stderr output
	err := run(t.Context(), nil, env(
		"DISCORD_TOKEN", "not-the-token", "DISCORD_API_URL", discord.APIURL(), "DATABASE_URL", postgrestest.URL(t),
		"GATEHOOK_ADDR", "127.0.0.1:0", "GATEHOOK_DATA_DIR", t.TempDir()), &stdout, &stderr)
	if err == nil || !strings.Contains(err.Error(), "token") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
	if all := err.Error() + stdout.String() + stderr.String(); strings.Contains(all, "not-the-token") {
		t.Errorf("the token is shown: %s", all)
	}
	key := strings.TrimSpace(stdout.String()[strings.LastIndex(stdout.String(), " ")+1:])
	if !strings.HasPrefix(key, "gk_") || strings.Contains(stderr.String(), key) {
		t.Errorf("stdout: %s", stdout.String())
	}
}

// TestAddressInUseIsReported checks that an address in use ends the start with one
// line that names the variable.
func TestAddressInUseIsReported(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	var stdout, stderr output
	err := run(t.Context(), nil, env(
		"DISCORD_TOKEN", discord.Token(), "DISCORD_API_URL", discord.APIURL(), "DATABASE_URL", postgrestest.URL(t),
		"GATEHOOK_ADDR", discord.GatewayURL()[len("ws://"):], "GATEHOOK_DATA_DIR", t.TempDir()), &stdout, &stderr)
	if err == nil || !strings.Contains(err.Error(), "GATEHOOK_ADDR") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
}

// TestCopiedDataDirectoryIsRefused checks that a server whose data directory is a copy of
// a live server's does not start, and that one line says what to do.
func TestCopiedDataDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	url, original, clone := postgrestest.URL(t), t.TempDir(), t.TempDir()
	p := newProcess(t, discord, "DATABASE_URL="+url, "GATEHOOK_DATA_DIR="+original)
	p.start()
	id, err := os.ReadFile(filepath.Join(original, instanceFile))
	if err == nil {
		err = os.WriteFile(filepath.Join(clone, instanceFile), id, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr output
	err = run(t.Context(), nil, env("DISCORD_TOKEN", discord.Token(), "DISCORD_API_URL", discord.APIURL(), "DATABASE_URL", url,
		"GATEHOOK_ADDR", "127.0.0.1:0", "GATEHOOK_API_KEY", testKey, "GATEHOOK_DATA_DIR", clone), &stdout, &stderr)
	if err == nil || !strings.Contains(err.Error(), original) || !strings.Contains(err.Error(), clone) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v; log: %s", err, &stderr)
	}
	if out := p.output(); strings.Contains(out, "heartbeat failed") || strings.Contains(out, "under a new number") {
		t.Errorf("the live server was harmed:\n%s", p.lastLines(20))
	}
}

// TestStopWhileStarting checks that a signal while the server waits for the
// database is a normal stop, not a failure.
func TestStopWhileStarting(t *testing.T) {
	t.Parallel()
	silent, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	go func() {
		conn, err := silent.Accept()
		stop()
		if err == nil {
			_ = conn.Close()
		}
	}()
	var stdout, stderr output
	if err := run(ctx, nil, env(
		"DISCORD_TOKEN", "a", "DATABASE_URL", "postgres://u:p@"+silent.Addr().String()+"/d",
		"GATEHOOK_ADDR", "127.0.0.1:0", "GATEHOOK_DATA_DIR", t.TempDir()), &stdout, &stderr); err != nil {
		t.Errorf("%v; log: %s", err, &stderr)
	}
}
