package discordtest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

func TestParseFrame(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	c, _ := ready(t, srv, 0, 1)
	for i, tt := range []struct{ recorded, want string }{
		{`{"op":0,"t":"X","d":{ "s":1 ,"a":"\u2764"},"s":5}`, `{"op":0,"t":"X","d":{ "s":1 ,"a":"\u2764"},"s":2}`},
		{`{"t":"X","s":123456,"op":0,"d":[1, 2]}`, `{"t":"X","s":3,"op":0,"d":[1, 2]}`},
		{" { \"d\" : null , \"s\" : null , \"extra\":{}, \"op\" : 0 , \"t\" : \"X\" } \n", " { \"d\" : null , \"s\" : 4 , \"extra\":{}, \"op\" : 0 , \"t\" : \"X\" } \n"},
	} {
		f, err := discordtest.ParseFrame([]byte(tt.recorded))
		if err != nil {
			t.Fatal(err)
		}
		sent, err := srv.DispatchFrame(0, f)
		if err != nil || sent.Seq != int64(i+2) || f.Name != "X" {
			t.Fatalf("sent %v of %s, %v", sent, f.Name, err)
		}
		if _, text, err := c.read(); err != nil || string(text) != tt.want {
			t.Errorf("got %s, %v; want %s", text, err, tt.want)
		}
	}
	f, err := discordtest.ParseFrame([]byte(`{"op":0,"t":"X","d":{ "id": "1" },"s":5}`))
	if err != nil || string(f.Data) != `{ "id": "1" }` {
		t.Errorf("data %s, %v", f.Data, err)
	}
	for _, bad := range []string{
		``, `[]`, `{`, `{"op":0,"t":"X","d":{}}`, `{"op":0,"t":"X","s":1}`, `{"op":0,"t":null,"d":{},"s":1}`,
		`{"op":11,"t":null,"d":null,"s":null}`, `{"op":0,"t":"X","d":{},"s":1`,
	} {
		if f, err := discordtest.ParseFrame([]byte(bad)); err == nil {
			t.Errorf("%s: parsed as %+v", bad, f)
		}
	}
	if _, err := srv.DispatchFrame(0, discordtest.Frame{}); err == nil {
		t.Error("an empty frame was dispatched")
	}
}

func TestDispatchRefused(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	if _, err := srv.Dispatch(0, "X", nil); !errors.Is(err, discordtest.ErrNoSession) {
		t.Errorf("got %v, want ErrNoSession", err)
	}
	if _, err := srv.Broadcast("X", nil); !errors.Is(err, discordtest.ErrNoSession) {
		t.Errorf("got %v, want ErrNoSession", err)
	}
	c, _ := ready(t, srv, 0, 1)
	for _, name := range []string{"", `A"B`, "A\\B", "A\n"} {
		if _, err := srv.Dispatch(0, name, nil); err == nil {
			t.Errorf("%q was dispatched", name)
		}
	}
	dispatch(t, srv, 0, "X", "")
	if p := c.next(); p.String() != "X 2" || string(p.D) != "null" {
		t.Errorf("got %s %s", p, p.D)
	}
}

func TestExpired(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{SessionLifetime: time.Nanosecond})
	c, _ := ready(t, srv, 0, 1)
	dispatch(t, srv, 0, "X", "")
	c.expect("X 2")
	drop(t, srv, c)
	if _, err := srv.Dispatch(0, "X", nil); !errors.Is(err, discordtest.ErrNoSession) {
		t.Errorf("got %v, want ErrNoSession", err)
	}
	if s, ok := srv.Session(0); ok {
		t.Errorf("session %+v", s)
	}
}

func TestRouting(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{LogDispatches: true})
	c, first := ready(t, srv, 0, 1) // the old generation of a reshard
	ready(t, srv, 0, 2)
	d, second := ready(t, srv, 1, 2)
	const guild = 7<<22 | 1234
	if got := discordtest.ShardOf(guild, 2); got != 1 {
		t.Fatalf("shard %d, want 1", got)
	}
	sent, err := srv.DispatchGuild(guild, "GUILD_UPDATE", []byte(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	got := map[discordtest.Sent]bool{}
	for _, s := range sent {
		got[s] = true
	}
	if want := map[discordtest.Sent]bool{{Session: first, Seq: 2}: true, {Session: second, Seq: 2}: true}; !cmp.Equal(got, want) {
		t.Errorf("sent %v, want %v", got, want)
	}
	c.expect("GUILD_UPDATE 2")
	d.expect("GUILD_UPDATE 2")
	if sent, err := srv.Broadcast("X", nil); err != nil || len(sent) != 3 {
		t.Errorf("sent %v, %v; want 3", sent, err)
	}
	c.expect("X 3")
	d.expect("X 3")

	names := map[string]int{}
	calls := map[int64]int{}
	for _, r := range srv.Dispatched() {
		names[r.Name]++
		calls[r.Call]++
	}
	if want := map[string]int{"READY": 3, "GUILD_UPDATE": 2, "X": 3}; !cmp.Equal(names, want) {
		t.Errorf("logged %v, want %v", names, want)
	}
	if want := map[int64]int{0: 3, 1: 2, 2: 3}; !cmp.Equal(calls, want) {
		t.Errorf("logged %v, want %v", calls, want)
	}
}

func TestWants(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{Wants: func(intents int64, name string) bool {
		return intents == 513 && name == "X" // READY and RESUMED are sent anyway
	}})
	c, session := ready(t, srv, 0, 1)
	if sent := dispatch(t, srv, 0, "TYPING_START", "{}"); sent != (discordtest.Sent{}) {
		t.Errorf("sent %v, want nothing", sent)
	}
	dispatch(t, srv, 0, "X", "{}")
	c.expect("X 2")
	drop(t, srv, c)
	resumed(t, srv, session, 2).expect("RESUMED 3")
}

// TestSlowClient lets a client fall behind by more than ReplayLimit: the script
// waits, and nothing is lost.
func TestSlowClient(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{ReplayLimit: 8})
	c, _ := ready(t, srv, 0, 1)
	const n = 200
	data := []byte(`"` + strings.Repeat("x", 64<<10) + `"`) // large enough to fill the sockets' buffers
	done := make(chan error, 1)
	go func() {
		for range n {
			if _, err := srv.Dispatch(0, "X", data); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for i := range n {
		c.expect(fmt.Sprintf("X %d", i+2))
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestDispatchEndsWithTheServer checks that Close ends a Dispatch that waits for
// a client that does not read.
func TestDispatchEndsWithTheServer(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{ReplayLimit: 8})
	ready(t, srv, 0, 1)
	data := []byte(`"` + strings.Repeat("x", 64<<10) + `"`)
	done := make(chan error, 1)
	stuck := make(chan struct{}, 1000)
	go func() {
		for {
			if _, err := srv.Dispatch(0, "X", data); err != nil {
				done <- err
				return
			}
			stuck <- struct{}{}
		}
	}()
	for idle := false; !idle; {
		select {
		case <-stuck:
		case <-time.After(100 * time.Millisecond):
			idle = true
		}
	}
	srv.Close()
	if err := <-done; !errors.Is(err, discordtest.ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
	if _, err := srv.WaitReady(t.Context(), 0); err == nil {
		if _, err = srv.WaitIdentify(t.Context(), 0, 2); !errors.Is(err, discordtest.ErrClosed) {
			t.Errorf("got %v, want ErrClosed", err)
		}
	}
	srv.Close() // again
}

func TestWaitsEndWithTheServer(t *testing.T) {
	t.Parallel()
	srv := start(t, discordtest.Config{})
	srv.Arm(discordtest.AtGatewayBot, discordtest.AnyShard, 1, discordtest.Delay(time.Hour))
	waits := []func(context.Context) error{
		func(ctx context.Context) error { _, err := srv.WaitReady(ctx, 0); return err },
		func(ctx context.Context) error { _, err := srv.WaitConnected(ctx, 1); return err },
		func(ctx context.Context) error { return srv.WaitAcked(ctx, 0, 1) },
	}
	for _, wait := range waits {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("enough"))
		if err := wait(ctx); err == nil || !strings.Contains(err.Error(), "enough") {
			t.Errorf("got %v, want the context's cause", err)
		}
	}
	results := make(chan error, len(waits))
	for _, wait := range waits {
		waiting := make(chan struct{})
		go func() { results <- wait(&signal{Context: t.Context(), asked: waiting}) }()
		<-waiting
	}
	srv.Close()
	for range waits {
		if err := <-results; !errors.Is(err, discordtest.ErrClosed) {
			t.Errorf("got %v, want ErrClosed", err)
		}
	}
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	_, err := discordtest.Start(discordtest.Config{Shards: -1, ReplayLimit: -1, SplitEvery: -1, HeartbeatInterval: time.Microsecond})
	for _, want := range []string{"Shards -1", "ReplayLimit -1", "SplitEvery -1", "HeartbeatInterval 1µs"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// signal is a context that closes asked when a caller waits for its end.
type signal struct {
	context.Context
	once  sync.Once
	asked chan struct{}
}

func (s *signal) Done() <-chan struct{} {
	s.once.Do(func() { close(s.asked) })
	return s.Context.Done()
}
