package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// memory is shared by instances, like a database: it outlives a Gateway. It
// commits at once, unless it is busy or frozen.
type memory struct {
	mu      sync.Mutex
	plan    event.Plan
	since   time.Time // of the plan's phase
	rows    map[event.Shard]*memoryRow
	members map[int64]*event.ShardRange // the range that each live instance is willing to run; nil for none
	joined  int64
	// failReleases is how many releases fail.
	failReleases int
	events       []*event.Event
	busy         bool          // appends wait
	waiting      int           // how many appends have waited
	frozen       bool          // appends are not committed
	left         time.Duration // of everybody's lease
	reads        int           // calls of Delivered
	change       chan struct{} // closed and replaced at every change
}

type memoryRow struct {
	session event.Session
	begun   bool
	stage   event.Stage
	owner   *memoryClaim
}

func newMemory() *memory {
	return &memory{left: time.Hour, rows: make(map[event.Shard]*memoryRow), members: make(map[int64]*event.ShardRange), change: make(chan struct{})}
}

func (m *memory) changed() {
	close(m.change)
	m.change = make(chan struct{})
}

func (m *memory) do(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	m.changed()
}

func (m *memory) setBusy(busy bool)     { m.do(func() { m.busy = busy }) }
func (m *memory) setFrozen(frozen bool) { m.do(func() { m.frozen = frozen }) }

func (m *memory) row(s event.Shard) *memoryRow {
	r := m.rows[s]
	if r == nil {
		r = &memoryRow{}
		m.rows[s] = r
	}
	return r
}

func (m *memory) session(s event.Shard) event.Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.row(s).session
}

func (m *memory) all() []*event.Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.events)
}

// wait returns the events as soon as done accepts them.
func (m *memory) wait(ctx context.Context, t *testing.T, goal string, done func([]*event.Event) bool) []*event.Event {
	t.Helper()
	// Not at every event: there are thousands, and done goes through all of them.
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		m.mu.Lock()
		events, change := slices.Clone(m.events), m.change
		m.mu.Unlock()
		if done(events) {
			return events
		}
		select {
		case <-change:
			<-again.C
		case <-ctx.Done():
			t.Fatalf("no %s in time; there are %d events", goal, len(events))
		}
	}
}

// another is the number of an instance that does not run.
const another = -1

// steal takes a shard away as another instance would.
func (m *memory) steal(shard event.Shard) {
	m.do(func() {
		close(m.row(shard).owner.lost)
		m.row(shard).owner = &memoryClaim{instance: another}
		m.members[another] = nil
	})
}

// free gives a stolen shard back.
func (m *memory) free(shard event.Shard) { m.do(func() { m.row(shard).owner = nil }) }

// owners returns how many shards of a set each instance has.
func (m *memory) owners(count int) map[int64]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := make(map[int64]int)
	for id, r := range m.rows {
		if id.Count == count && r.owner != nil {
			n[r.owner.instance]++
		}
	}
	return n
}

// peer is one instance's Store.
type peer struct {
	*memory
	instance int64
}

// join adds an instance.
func (m *memory) join() *peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.joined++
	id := m.joined
	m.members[id] = nil
	return &peer{m, id}
}

// die makes the shards of an instance free, as if its lease had run out.
func (m *peer) die() { m.do(func() { delete(m.members, m.instance) }) }

func (m *peer) Plan(_ context.Context, _ event.Snowflake, count int) (event.Plan, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.plan.Version == 0 {
		m.plan, m.since = event.Plan{Version: 1, Current: count, Phase: event.Steady}, time.Now()
		m.add(count)
	}
	p := m.plan
	p.Age = time.Since(m.since)
	return p, nil
}

func (m *memory) add(count int) {
	for id := range count {
		m.row(event.Shard{ID: id, Count: count}).stage = event.StageNone
	}
}

func (m *peer) Replan(_ context.Context, _ event.Snowflake, from, to event.Plan) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.plan.Version != from.Version {
		return false, nil
	}
	if to.Next != 0 && to.Next != from.Next {
		m.add(to.Next)
	}
	to.Version, m.since = from.Version+1, time.Now()
	if to.Phase == event.Holding {
		to.OverlapAt = m.since
	}
	if to.Phase == event.Overlapping {
		to.HeldAt = m.since
	}
	m.plan = to
	m.changed()
	return true, nil
}

func (m *peer) Survey(_ context.Context, _ event.Snowflake, r, willing event.ShardRange) (event.Survey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.members[m.instance] = &willing
	s := event.Survey{Self: m.instance}
	covered := make(map[int]bool)
	for id, has := range m.members {
		if has == nil {
			continue
		}
		theirs := *has
		if theirs.Count != r.Count {
			theirs = event.ShardRange{Last: r.Count - 1, Count: r.Count}
		}
		if theirs == r {
			s.Peers = append(s.Peers, id)
		}
		for id := theirs.First; id <= theirs.Last; id++ {
			covered[id] = true
		}
	}
	slices.Sort(s.Peers)
	for id := range r.Count {
		if !covered[id] {
			continue
		}
		row := m.row(event.Shard{ID: id, Count: r.Count})
		if row.owner != nil && row.owner.instance == m.instance {
			s.Owned = append(s.Owned, id)
		}
		if row.free(m.memory) && row.stage != event.StageEnded && id >= r.First && id <= r.Last {
			s.Free = append(s.Free, id)
		}
		s.Shards++
		switch row.stage {
		case event.StageReady:
			s.Ready++
		case event.StageHolding:
			s.Ready++
			s.Holding++
		case event.StageEnded:
			s.Ended++
		case event.StageNone:
		}
	}
	return s, nil
}

func (r *memoryRow) free(m *memory) bool {
	if r.owner == nil {
		return true
	}
	_, lives := m.members[r.owner.instance]
	return !lives
}

func (m *peer) Claim(_ context.Context, _ event.Snowflake, shards []event.Shard) ([]Claim, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var claims []Claim
	for _, id := range shards {
		row := m.row(id)
		if !row.free(m.memory) && row.owner.instance != m.instance || row.stage == event.StageEnded {
			continue
		}
		c := &memoryClaim{
			memory: m.memory, instance: m.instance, shard: id, claimed: row.session, begun: row.begun, stage: row.stage,
			appended: row.session, stored: row.session.Seq, lost: make(chan struct{}),
		}
		row.owner = c
		claims = append(claims, c)
	}
	return claims, nil
}

func (m *peer) Lease() (left, length time.Duration) {
	m.do(func() { left = m.left })
	return left, 8 * time.Second
}

func (m *peer) Withdraw(context.Context) error {
	m.do(func() { m.members[m.instance] = nil })
	return nil
}

func (m *peer) Holders(_ context.Context, _ event.Snowflake, count int) (map[int]event.Holder, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	holders := make(map[int]event.Holder)
	for id, r := range m.rows {
		if id.Count == count && r.owner != nil {
			holders[id.ID] = event.Holder{Name: fmt.Sprint("instance ", r.owner.instance)}
		}
	}
	return holders, nil
}

func (m *peer) Delivered(_ context.Context, count int, since time.Time) (delivered []event.Delivered, err error) {
	m.do(func() { m.reads++ })
	for _, e := range m.all() {
		if e.Shard.Count == count && e.Seq > 0 && !e.ReceivedAt.Before(since) {
			delivered = append(delivered, event.Delivered{Digest: digestOf(e), ReceivedAt: e.ReceivedAt})
		}
	}
	return delivered, nil
}

type memoryClaim struct {
	memory   *memory
	instance int64
	shard    event.Shard
	claimed  event.Session
	begun    bool
	stage    event.Stage
	lost     chan struct{}
	appended event.Session
	stored   int64
}

func (c *memoryClaim) Shard() event.Shard     { return c.shard }
func (c *memoryClaim) Session() event.Session { return c.claimed }
func (c *memoryClaim) Stage() event.Stage     { return c.stage }
func (c *memoryClaim) Begun() bool            { return c.begun }

func (c *memoryClaim) Begin(context.Context) error {
	return c.update(func(r *memoryRow) { r.begun = true })
}

func (c *memoryClaim) Unbegin(context.Context) error {
	return c.update(func(r *memoryRow) { r.begun = r.begun && c.begun })
}

func (c *memoryClaim) Append(ctx context.Context, session event.Session, e *event.Event) error {
	m := c.memory
	for {
		m.mu.Lock()
		if !m.busy {
			break
		}
		change := m.change
		m.waiting++
		m.mu.Unlock()
		select {
		case <-change:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	defer m.mu.Unlock()
	if c.appended.ID != session.ID {
		c.stored = 0
	}
	c.appended = session
	if !m.frozen {
		m.row(c.shard).session, c.stored = session, session.Seq
		m.row(c.shard).begun = m.row(c.shard).begun && session.ID == ""
	}
	if e != nil {
		m.events = append(m.events, e)
	}
	m.changed()
	return nil
}

func (c *memoryClaim) Stored() int64 {
	c.memory.mu.Lock()
	defer c.memory.mu.Unlock()
	return c.stored
}

func (c *memoryClaim) Lost() <-chan struct{} { return c.lost }

func (c *memoryClaim) Confirm(context.Context) error {
	select {
	case <-c.lost:
		return errors.New("the claim is lost")
	default:
		return nil
	}
}

// update changes the row as long as this claim owns it.
func (c *memoryClaim) update(f func(*memoryRow)) error {
	c.memory.do(func() {
		if row := c.memory.row(c.shard); row.owner == c {
			f(row)
		}
	})
	return nil
}

func (c *memoryClaim) Mark(_ context.Context, stage event.Stage) error {
	return c.update(func(r *memoryRow) { r.stage = stage })
}

func (c *memoryClaim) Release(context.Context) error {
	failed := false
	c.memory.do(func() {
		if failed = c.memory.failReleases > 0; failed {
			c.memory.failReleases--
		}
	})
	if failed {
		return errors.New("the database is slow")
	}
	return c.update(func(r *memoryRow) { r.owner, r.begun = nil, false })
}

func (c *memoryClaim) End(context.Context) error {
	return c.update(func(r *memoryRow) { *r = memoryRow{stage: event.StageEnded} })
}

func names(events []*event.Event) []string {
	list := make([]string, len(events))
	for i, e := range events {
		list[i] = e.Name
	}
	return list
}
