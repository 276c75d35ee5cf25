package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
)

// dropped waits for the n-th GATEHOOK_PAYLOAD_DROPPED and returns its data.
func (r *rig) dropped(n int) (d droppedData) {
	r.t.Helper()
	e := r.named("GATEHOOK_PAYLOAD_DROPPED", n)
	if err := json.Unmarshal(e.Data, &d); err != nil || e.Seq != 0 {
		r.t.Fatalf("%s: %v", e.Data, err)
	}
	return d
}

// TestUnreadablePayloadCostsOnlyItself: one dispatch that can't be read is dropped
// and told, and the next one is read on the same connection. The session goes on
// after it, also in a replay and on the next connection.
func TestUnreadablePayloadCostsOnlyItself(t *testing.T) {
	t.Parallel()
	const limit = 64 << 10
	flawed := map[string]struct{ data, reason string }{
		"a control character":  {"{\"content\":\"a\x01b\"}", "not_json"},
		"a line break":         {"{\"content\":\"a\nb\"}", "not_json"},
		"an end that is early": {`{"content":`, "not_json"},
		"a value too many":     {`{}{}`, "not_json"},
		"too large":            {`{"content":"` + strings.Repeat("x", limit) + `"}`, "too_large"},
		"far too large":        {`{"content":"` + strings.Repeat("xyz", 100*limit) + `"}`, "too_large"},
		"too large and broken": {strings.Repeat("{", 2*limit), "too_large"},
	}
	for _, c := range []discord.Compression{discord.ZstdStream, discord.ZlibStream, discord.NoCompression} {
		for _, split := range []int{0, 1000} {
			if split > 0 && c != discord.ZlibStream {
				continue
			}
			for name, f := range flawed {
				t.Run(fmt.Sprintf("%s %d %s", c, split, name), func(t *testing.T) {
					t.Parallel()
					r := newRig(t, discordtest.Config{SplitEvery: split})
					r.cfg.Compression, r.cfg.MaxPayload = c, limit
					stop := r.start()
					session := r.ready(0)
					r.dispatch(0, 0, 3)
					sent, err := r.Dispatch(0, "MESSAGE_UPDATE", []byte(f.data))
					if err != nil {
						t.Fatal(err)
					}
					r.dispatch(0, 3, 3)
					r.messages(6)
					update := "MESSAGE_UPDATE"
					want := droppedData{SessionID: session.ID, Seq: &sent.Seq, Event: &update, Reason: f.reason}
					if diff := cmp.Diff(want, r.dropped(1)); diff != "" {
						t.Error(diff)
					}
					// In a replay.
					r.do(0, discordtest.Drop())
					r.count(discordtest.Resume, 0, 1)
					if sent, err = r.Dispatch(0, "MESSAGE_UPDATE", []byte(f.data)); err != nil {
						t.Fatal(err)
					}
					r.dispatch(0, 6, 3)
					r.messages(9)
					want.Seq = &sent.Seq
					if diff := cmp.Diff(want, r.dropped(2)); diff != "" {
						t.Error(diff)
					}
					// As the last one before a restart.
					if sent, err = r.Dispatch(0, "MESSAGE_UPDATE", []byte(f.data)); err != nil {
						t.Fatal(err)
					}
					r.dropped(3)
					stop()
					r.start()
					if e := r.count(discordtest.Resume, 0, 2); e.Seq != sent.Seq {
						t.Errorf("RESUME from %d, want %d: after the payload that was dropped", e.Seq, sent.Seq)
					}
					r.named("SHARD_RESUME", 2)
					if n := r.Count(discordtest.Connected, discordtest.AnyShard); n != 3 {
						t.Errorf("%d connections, want 3", n)
					}
					if n := strings.Count(strings.Join(names(r.store.all()), " "), "GATEHOOK_PAYLOAD_DROPPED"); n != 3 {
						t.Errorf("told %d times, want 3", n)
					}
					r.legal()
				})
			}
		}
	}
}

// TestDroppedIsCounted: with its reason.
func TestDroppedIsCounted(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.start()
	r.ready(0)
	r.do(0, send(`{"op":0,"t":"X","s":`), send(`[]`), send(`{"op":0,"t":"X","s":null}`))
	r.dropped(3)
	shown := r.scrape()
	for _, reason := range []string{"not_json", "no_envelope", "no_event"} {
		if want := fmt.Sprintf("gatehook_gateway_frames_dropped_total{reason=%q} 1\n", reason); !strings.Contains(shown, want) {
			t.Errorf("%s is not shown:\n%s", want, shown)
		}
	}
	for n := range 3 {
		if d := r.dropped(n + 1); d.Seq != nil {
			t.Errorf("payload %d: a sequence number of %d", n, *d.Seq)
		}
	}
}

// TestEventNameIsChecked: what is no name goes into no header, log or label. The
// session goes on after it.
func TestEventNameIsChecked(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.start()
	session := r.ready(0)
	bad := []string{`ODD\r\nX-Injected: yes`, `ODD\nX: y`, `ODD\u0000`, `ODD `, ` ODD`, `odd`, `\u00dcODD`, `O-DD`, `*`, strings.Repeat("X", 101), "\xff"}
	last := int64(0)
	for n, name := range bad {
		frame, err := discordtest.ParseFrame([]byte(`{"t":"` + name + `","s":1,"op":0,"d":{}}`))
		if err != nil {
			t.Fatal(err)
		}
		sent, err := r.DispatchFrame(0, frame)
		if err != nil {
			t.Fatal(err)
		}
		last = sent.Seq
		want := droppedData{SessionID: session.ID, Seq: &sent.Seq, Reason: "event_name"}
		if diff := cmp.Diff(want, r.dropped(n+1)); diff != "" {
			t.Errorf("%q: %s", name, diff)
		}
	}
	good := []string{"X", "GUILD_2_THINGS", strings.Repeat("X", 100)}
	for _, name := range good {
		if _, err := r.Dispatch(0, name, []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
		r.named(name, 1)
	}
	for _, e := range r.store.all() {
		if !event.IsName([]byte(e.Name)) {
			t.Errorf("%q was handed on", e.Name)
		}
	}
	r.do(0, discordtest.Drop())
	if e := r.count(discordtest.Resume, 0, 1); e.Seq != last+int64(len(good)) {
		t.Errorf("RESUME from %d, want %d", e.Seq, last+int64(len(good)))
	}
	r.legal()
}

// TestWhatCannotBeInflatedTwice: broken compression costs a RESUME. If it breaks
// again at the same place of the replay, the session goes on behind that place, and
// is neither lost nor resumed from there for ever.
func TestWhatCannotBeInflatedTwice(t *testing.T) {
	t.Parallel()
	for _, c := range []discord.Compression{discord.ZstdStream, discord.ZlibStream} {
		t.Run(string(c), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, discordtest.Config{})
			r.cfg.Compression = c
			r.timing.reconnect = 100 * time.Millisecond
			r.start()
			session := r.ready(0)
			r.dispatch(0, 0, 5)
			r.messages(5)
			// Message 6, number 7 of the session, is in the replay behind the place
			// that breaks.
			r.Arm(discordtest.AtResume, 0, 1, discordtest.Corrupt())
			r.do(0, discordtest.Corrupt())
			broken, err := r.Dispatch(0, "TYPING_START", []byte(`{}`))
			if err != nil {
				t.Fatal(err)
			}
			r.dispatch(0, 5, 5)
			want := droppedData{SessionID: session.ID, Seq: &broken.Seq, Reason: "not_inflated"}
			if diff := cmp.Diff(want, r.dropped(1)); diff != "" {
				t.Error(diff)
			}
			r.messages(10)
			if e := r.count(discordtest.Resume, 0, 1); e.Seq != broken.Seq-1 {
				t.Errorf("first RESUME from %d, want %d", e.Seq, broken.Seq-1)
			}
			if e := r.count(discordtest.Resume, 0, 2); e.Seq != broken.Seq {
				t.Errorf("second RESUME from %d, want %d", e.Seq, broken.Seq)
			}
			r.named("SHARD_RESUME", 1)
			// Two breaks with a whole replay between them are none at the same place.
			r.do(0, discordtest.Corrupt())
			r.named("SHARD_RESUME", 2)
			r.ready(0)
			r.do(0, discordtest.Corrupt())
			r.named("SHARD_RESUME", 3)
			if n := strings.Count(strings.Join(names(r.store.all()), " "), "GATEHOOK_PAYLOAD_DROPPED"); n != 1 {
				t.Errorf("told %d times, want once", n)
			}
			if n := r.Count(discordtest.Identify, 0); n != 1 {
				t.Errorf("%d IDENTIFYs, want 1", n)
			}
			r.legal()
		})
	}
}

// TestUnreadableReady: a connection without READY is of no use.
func TestUnreadableReady(t *testing.T) {
	t.Parallel()
	for _, ready := range []string{"{\"t\":\"READY\",\"s\":1,\"op\":0,\"d\":{\"x\":\"\x01\"}}", "{\"d\":\"\x01\"", `{"t":"READY","s":null,"op":0,"d":{}}`} {
		r := newRig(t, discordtest.Config{})
		r.Arm(discordtest.AtIdentify, 0, 1, send(ready), discordtest.Skip())
		r.start()
		r.ready(0)
		r.dispatch(0, 0, 5)
		r.messages(5)
		if n := r.Count(discordtest.Identify, 0); n != 2 {
			t.Errorf("%q: %d IDENTIFYs, want 2", ready, n)
		}
	}
}

// TestUnreadableResumed: that RESUMED came is all that counts.
func TestUnreadableResumed(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	r.start()
	r.ready(0)
	r.dispatch(0, 0, 5)
	r.messages(5)
	r.Arm(discordtest.AtResume, 0, 1, send("{\"t\":\"RESUMED\",\"s\":7,\"op\":0,\"d\":{\"_trace\":[\"\x01\"]}}"), discordtest.Skip())
	r.do(0, discordtest.Drop())
	r.named("SHARD_RESUME", 1)
	if d := r.dropped(1); *d.Seq != 7 || *d.Event != "RESUMED" {
		t.Errorf("%+v", d)
	}
	if e := r.named("RESUMED", 1); !bytes.Equal(e.Data, []byte("null")) {
		t.Errorf("RESUMED is %s", e.Data)
	}
}
