package journal

import (
	"testing"

	"github.com/google/uuid"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// TestSessionThatBeginsLeavesATrace: until a session is stored or the claim is
// released, the next claim hears that one was begun. Notices without a session
// change nothing.
func TestSessionThatBeginsLeavesATrace(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{}).start(t)
	store := func(c *Claim, session event.Session, e *event.Event) {
		t.Helper()
		if err := c.Append(t.Context(), session, e); err != nil {
			t.Fatal(err)
		}
		b.sink.await(t, 1)
	}
	// A claim again by the same instance stands for one after a crash: it raises
	// the epoch too.
	c := b.claim(t, shard0)
	if c.Begun() {
		t.Error("a session was begun although there never was a claim")
	}
	if err := c.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	store(c, event.Session{}, wanted(shard0, 1))
	if c = b.claim(t, shard0); !c.Begun() {
		t.Error("nothing is known of the session that was begun")
	}
	if c = b.claim(t, shard0); !c.Begun() {
		t.Error("a claim that began no session makes it unknown")
	}
	store(c, session(2), wanted(shard0, 2))
	if c = b.claim(t, shard0); c.Begun() {
		t.Error("the session is stored, and still counts as begun")
	}
	if err := c.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c = b.claim(t, shard0); c.Begun() {
		t.Error("a release stores all that came: nothing is lost")
	}
	if err := c.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Unbegin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c = b.claim(t, shard0); c.Begun() {
		t.Error("an IDENTIFY that began no session counts as one that did")
	}
	// What an earlier owner left outlives a claim that could not report it.
	if err := c.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	c = b.claim(t, shard0)
	for _, end := range []func(*Claim) error{
		func(c *Claim) error { return c.Unbegin(t.Context()) },
		func(c *Claim) error { return c.Release(t.Context()) },
	} {
		if err := end(c); err != nil {
			t.Fatal(err)
		}
		if c = b.claim(t, shard0); !c.Begun() {
			t.Error("a loss that nobody reported is forgotten")
		}
	}
}
