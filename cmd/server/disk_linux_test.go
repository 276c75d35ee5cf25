//go:build root

package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// onSmallDisk gives the server a data directory on a disk of its own, which only it sees,
// and returns where others find that directory while the server runs. It needs root.
func (p *process) onSmallDisk(megabytes int) (place func() string) {
	p.t.Helper()
	var dir string
	for _, s := range p.env {
		if v, ok := strings.CutPrefix(s, "GATEHOOK_DATA_DIR="); ok {
			dir = v
		}
	}
	p.wrap = []string{
		"unshare", "--mount", "--propagation", "private", "sh", "-c",
		fmt.Sprintf(`mount -t tmpfs -o size=%dm,mode=0755 none "$GATEHOOK_DATA_DIR" && exec "$0"`, megabytes),
	}
	return func() string { return fmt.Sprintf("/proc/%d/root%s", p.cmd.Process.Pid, dir) }
}

// fill writes a file until so many bytes are left on the disk.
func fill(t *testing.T, path string, left int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // what is in it does not matter
	for {
		var disk syscall.Statfs_t
		if err := syscall.Fstatfs(int(f.Fd()), &disk); err != nil {
			t.Fatal(err)
		}
		free := int64(disk.Bavail) * disk.Bsize
		if free <= left {
			return
		}
		if _, err := f.Write(make([]byte, min(free-left, 1<<20))); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}

// TestDiskFull fills the disk of the embedded PostgreSQL under load. The server goes on,
// says what to do, and delivers everything once there is space again.
func TestDiskFull(t *testing.T) {
	for _, tt := range []struct {
		name string
		left int64 // bytes
		says string
	}{
		{"Tables", 0, "the database's disk is full: free some space on it"},
		// Enough for the tables, but not for the next segment of the log, of 16 MB: then
		// PostgreSQL crashes.
		{"Log", 12 << 20, "No space left on device: the database's disk is full: free some space on it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			discord := startDiscordAs(t, discordtest.Config{Shards: manyShards})
			p := newProcess(t, discord)
			place := p.onSmallDisk(512)
			p.start()
			awaitShards(t, discord, manyShards)
			l := newLedger(t)
			l.callback(p, "MESSAGE_CREATE")
			l.callback(p, "RAW_MESSAGE_CREATE")
			stop := load(t, discord, l, 5*time.Millisecond)
			filler := place() + "/filler"
			fill(t, filler, tt.left)
			eventually(t, 2*time.Minute, "not ready", func() (bool, string) {
				status, body := p.get("/readyz")
				return status == http.StatusServiceUnavailable, body
			})
			begin := l.sentSoFar()
			eventually(t, time.Minute, "goes on", func() (bool, string) {
				sent := l.sentSoFar() - begin
				return sent >= 2000, fmt.Sprint(sent)
			})
			p.alive()
			if !strings.Contains(p.output(), tt.says) {
				t.Errorf("the log does not say %q", tt.says)
			}
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			eventually(t, time.Minute, "ready again", func() (bool, string) {
				status, body := p.get("/readyz")
				return status == http.StatusOK, body
			})
			stop()
			l.await(2 * time.Minute)
			if n := discord.Count(discordtest.Identify, discordtest.AnyShard); n != manyShards {
				t.Errorf("%d IDENTIFYs for %d shards", n, manyShards)
			}
			t.Logf("%d events, %d came twice", len(l.expected), l.twice())
		})
	}
}
