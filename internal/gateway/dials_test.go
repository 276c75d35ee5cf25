package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
)

// logBook collects log lines.
type logBook struct {
	mu    sync.Mutex
	lines []map[string]any
}

// Write implements io.Writer for a slog.JSONHandler.
func (l *logBook) Write(p []byte) (int, error) {
	var line map[string]any
	if err := json.Unmarshal(bytes.TrimSpace(p), &line); err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	return len(p), nil
}

func (l *logBook) with(message string) (found []map[string]any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if line["msg"] == message {
			found = append(found, line)
		}
	}
	return found
}

// TestFailedDialsAreSaid: a shard that cannot connect says why in the log, at once
// and then once a minute, in its status and in a metric, until it can.
func TestFailedDialsAreSaid(t *testing.T) {
	t.Parallel()
	withClock(t, discordtest.Config{SessionLifetime: 24 * time.Hour}, func(r *clockRig) {
		t := r.t
		var book logBook
		r.log = slog.New(slog.NewJSONHandler(&book, nil))
		r.start()
		r.ready(0)
		r.named("READY", 1)
		if st := r.gateway.Status()[0]; st.Problem != "" {
			t.Errorf("problem %q before", st.Problem)
		}
		r.net.setDown(true)
		for n, at := range []time.Duration{3 * time.Second, 30 * time.Second, 10 * time.Minute} {
			r.sleep(at)
			st := r.gateway.Status()[0]
			if st.State != StateResuming || !strings.HasPrefix(st.Problem, "cannot connect to memory-") {
				t.Errorf("sleep %d: %s with problem %q", n, st.State, st.Problem)
			}
			reasons, want := r.gateway.Unready(), []int{0, 0, 1}[n]
			if len(reasons) != want || want == 1 && !strings.Contains(reasons[0], st.Problem) {
				t.Errorf("sleep %d: unready: %q", n, reasons)
			}
			failed := float64(len(book.with("could not connect, trying again")))
			if total := r.failedDials("other"); total < failed || failed == 0 {
				t.Errorf("sleep %d: %v failures are counted, and %v logged", n, total, failed)
			}
			limit := []int{1, 1, 12}[n]
			if lines := len(book.with("could not connect, trying again")); lines > limit {
				t.Errorf("sleep %d: %d lines, want %d at most", n, lines, limit)
			}
		}
		unlogged := 0.0
		lines := book.with("could not connect, trying again")
		for _, line := range lines {
			unlogged += line["not_logged"].(float64)
			if line["reason"] != "other" || !strings.Contains(line["error"].(string), errNetworkDown.Error()) || line["shard"] != "0/1" {
				t.Errorf("%v", line)
			}
		}
		if len(lines) < 5 || unlogged < 3 {
			t.Errorf("%d lines say that %v more were not logged", len(lines), unlogged)
		}
		r.net.setDown(false)
		r.named("SHARD_RESUME", 1)
		if st := r.gateway.Status()[0]; st.Problem != "" || r.gateway.Unready() != nil {
			t.Errorf("problem %q after, unready: %v", st.Problem, r.gateway.Unready())
		}
		// The next outage is logged at once.
		before := len(book.with("could not connect, trying again"))
		r.net.setDown(true)
		r.sleep(3 * time.Second)
		if n := len(book.with("could not connect, trying again")); n != before+1 {
			t.Errorf("%d lines, want %d", n, before+1)
		}
		r.net.setDown(false)
		r.named("SHARD_RESUME", 2)
		r.legal()
	})
}

// failedDials returns how many failed dials are counted with a reason.
func (r *rig) failedDials(reason string) float64 {
	r.t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "gatehook_gateway_dials_failed_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == reason {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// TestFailedDialsBeforeASession: a shard that never connected says why, too.
func TestFailedDialsBeforeASession(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.Arm(discordtest.AtConnect, discordtest.AnyShard, 5, discordtest.Status(503))
	r.start()
	r.wait("a problem", func() bool {
		st := r.gateway.Status()
		return len(st) == 1 && strings.Contains(st[0].Problem, "did not accept a WebSocket")
	})
	r.ready(0)
	if n := r.failedDials("http_status"); n != 5 {
		t.Errorf("%v failures are counted, want 5", n)
	}
}

// TestFailedDialsAreSaidWhileWaiting: the long waits between failed dials don't
// hide why they fail, and the status says when the next one is.
func TestFailedDialsAreSaidWhileWaiting(t *testing.T) {
	t.Parallel()
	withPace(t, discordtest.Config{}, func(r *clockRig) {
		r.Arm(discordtest.AtConnect, discordtest.AnyShard, discordtest.Always, discordtest.Status(503))
		r.start()
		said := 0
		for range 20 {
			r.sleep(time.Minute)
			problem := r.gateway.Status()[0].Problem
			if !strings.HasPrefix(problem, "cannot connect to ") || !strings.Contains(problem, "did not accept a WebSocket") {
				r.t.Errorf("problem %q", problem)
			}
			if strings.Contains(problem, "; the next try is at ") {
				said++
			}
		}
		if said == 0 {
			r.t.Error("no problem says when the next try is")
		}
		r.legal()
	})
}

// slowConfirm is a Store whose claims don't answer Confirm until free is closed,
// except for the last shard's, which can be claimed once all others wait.
type slowConfirm struct {
	Store
	last  int
	waits chan struct{} // gets one for every claim that waits
	free  chan struct{}
	full  bool
}

func (s *slowConfirm) Claim(ctx context.Context, id event.Snowflake, shards []event.Shard) ([]Claim, error) {
	if s.full = s.full || len(s.waits) == s.last; !s.full {
		shards = slices.DeleteFunc(slices.Clone(shards), func(id event.Shard) bool { return id.ID == s.last })
	}
	claims, err := s.Store.Claim(ctx, id, shards)
	for i, c := range claims {
		if c.Shard().ID != s.last {
			claims[i] = slowConfirmClaim{c, s}
		}
	}
	return claims, err
}

type slowConfirmClaim struct {
	Claim
	s *slowConfirm
}

func (c slowConfirmClaim) Confirm(ctx context.Context) error {
	select {
	case c.s.waits <- struct{}{}:
	default:
	}
	select {
	case <-c.s.free:
	case <-ctx.Done():
	}
	return c.Claim.Confirm(ctx)
}

// TestConfirmHoldsNoDialSlot: while the database is away, shards that ask whether
// they still have their claim don't keep others from connecting.
func TestConfirmHoldsNoDialSlot(t *testing.T) {
	t.Parallel()
	const shards = maxDials + 1
	r := newRig(t, discordtest.Config{
		Shards: shards, HeartbeatInterval: discord.MaxInterval,
		SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 1000, MaxConcurrency: shards},
	})
	slow := &slowConfirm{last: shards - 1, waits: make(chan struct{}, shards-1), free: make(chan struct{})}
	r.wrap = func(s Store) Store {
		slow.Store = s
		return slow
	}
	r.start()
	r.ready(shards - 1)
	close(slow.free)
	for id := range shards {
		r.ready(id)
	}
	r.legal()
}

// TestSessionThatWasBegun: an instance that ends after its IDENTIFY and before it
// stored the session leaves a trace, and the next one says that a session is lost.
func TestSessionThatWasBegun(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	shard := event.Shard{ID: 0, Count: 1}
	begun := func() (b bool) {
		r.store.do(func() { b = r.store.row(shard).begun })
		return b
	}
	disarm := r.Arm(discordtest.AtIdentify, 0, discordtest.Always, discordtest.Skip())
	stop := r.start()
	r.count(discordtest.Identify, 0, 1)
	if !begun() {
		t.Error("nothing is stored although IDENTIFY was sent")
	}
	stop()
	if begun() {
		t.Error("a drain stores all events: there is nothing to say afterwards")
	}
	disarm()
	r.store.do(func() { r.store.row(shard).begun = true }) // a crash
	r.start()
	session := r.ready(0)
	var got lostData
	e := r.named("GATEHOOK_SESSION_LOST", 1)
	want := lostData{NextSessionID: session.ID, NextSeq: 1, Reason: "a server ended before it stored the session that it began"}
	if err := json.Unmarshal(e.Data, &got); err != nil || got != want {
		t.Errorf("%+v, want %+v (%v)", got, want, err)
	}
	r.named("READY", 1)
	if begun() {
		t.Error("the session is stored, and still counts as begun")
	}
	r.legal()
}
