package journal

import (
	"crypto/md5"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

var ignoreTimes = cmpopts.IgnoreFields(event.Plan{}, "Version", "Age", "OverlapAt")

func TestPlan(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{})
	steady, err := b.Plan(t.Context(), app, 4)
	if diff := cmp.Diff(event.Plan{Current: 4, Phase: event.Steady}, steady, ignoreTimes); diff != "" || err != nil {
		t.Fatal(diff, err)
	}
	if again, err := b.Plan(t.Context(), app, 16); err != nil || again.Current != 4 || again.Version != steady.Version {
		t.Errorf("a later call returns %+v, %v", again, err)
	}
	// Of several concurrent changes of a plan only one succeeds.
	warming := event.Plan{Current: 4, Next: 2, Phase: event.Warming}
	var mu sync.Mutex
	var all sync.WaitGroup
	changed := 0
	for range 5 {
		all.Go(func() {
			done, err := b.Replan(t.Context(), app, steady, warming)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if done {
				changed++
			}
		})
	}
	all.Wait()
	if changed != 1 {
		t.Errorf("%d of 5 changed the plan", changed)
	}
	now, err := b.Plan(t.Context(), app, 4)
	if diff := cmp.Diff(warming, now, ignoreTimes); diff != "" || err != nil || !now.OverlapAt.IsZero() {
		t.Fatal(diff, err, now.OverlapAt)
	}
	holding := now
	holding.Phase = event.Holding
	if done, err := b.Replan(t.Context(), app, now, holding); err != nil || !done {
		t.Fatal(done, err)
	}
	now, err = b.Plan(t.Context(), app, 4)
	if err != nil || now.Phase != event.Holding || now.OverlapAt.IsZero() || now.Age < 0 || now.Age > time.Minute {
		t.Errorf("%+v, %v", now, err)
	}
}

// survey calls Survey, which must succeed.
func (b *bundle) survey(t *testing.T, r, willing event.ShardRange) event.Survey {
	t.Helper()
	s, err := b.Survey(t.Context(), app, r, willing)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSurvey(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	dead := join(t, pool, uuid.New())
	d := open(t, pool, dead, Config{})
	a := open(t, pool, join(t, pool, uuid.New()), Config{}).start(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{})
	if _, err := a.Plan(t.Context(), app, 4); err != nil {
		t.Fatal(err)
	}
	whole := event.ShardRange{First: 0, Last: 3, Count: 4}
	d.survey(t, whole, event.ShardRange{})
	if _, err := d.Claim(t.Context(), app, []event.Shard{{ID: 3, Count: 4}}); err != nil {
		t.Fatal(err)
	}
	if err := dead.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := a.survey(t, whole, event.ShardRange{})
	want := event.Survey{Self: a.instance.ID(), Peers: []int64{a.instance.ID()}, Owned: []int{}, Free: []int{0, 1, 2, 3}, Shards: 4}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("alone:\n%s", diff)
	}
	claimed, err := a.Claim(t.Context(), app, []event.Shard{{ID: 2, Count: 4}, {ID: 0, Count: 4}, {ID: 3, Count: 4}})
	if err != nil || len(claimed) != 3 {
		t.Fatal(claimed, err)
	}
	if err := claimed[0].Mark(t.Context(), event.StageReady); err != nil {
		t.Fatal(err)
	}
	if err := claimed[1].Mark(t.Context(), event.StageHolding); err != nil {
		t.Fatal(err)
	}
	got = b.survey(t, whole, event.ShardRange{})
	want = event.Survey{
		Self: b.instance.ID(), Peers: []int64{a.instance.ID(), b.instance.ID()}, Owned: []int{}, Free: []int{1},
		Shards: 4, Ready: 2, Holding: 1,
	}
	slices.Sort(want.Peers)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("beside another:\n%s", diff)
	}
	if err := claimed[2].End(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := claimed[1].Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	got = a.survey(t, whole, event.ShardRange{})
	ended, freed := claimed[2].Shard().ID, claimed[1].Shard().ID
	if slices.Contains(got.Free, ended) || !slices.Contains(got.Free, freed) || slices.Contains(got.Owned, freed) || got.Ended != 1 {
		t.Errorf("after shard %d ended and %d was released: %+v", ended, freed, got)
	}
	// A claim that was released is lost once another instance has claimed the shard.
	if _, err := b.Claim(t.Context(), app, []event.Shard{{ID: freed, Count: 4}}); err != nil {
		t.Fatal(err)
	}
	if err := claimed[1].Mark(t.Context(), event.StageNone); !errors.Is(err, ErrLost) {
		t.Errorf("Mark after another instance claimed the shard: %v", err)
	}
	// An instance that drains leaves its share to the others.
	if err := b.Withdraw(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := a.survey(t, whole, event.ShardRange{}); len(got.Peers) != 1 {
		t.Errorf("peers after one withdrew: %v", got.Peers)
	}
}

// Instances share the shards of a range with the other instances of that range, and the
// counts are for the union of all ranges.
// What nobody has inherited is still its owner's, whatever the owner's lease says: after an
// outage, each instance finds its shards where it left them.
func TestSurveyKeepsWhatNobodyInherited(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	a := open(t, pool, join(t, pool, uuid.New()), Config{})
	b := open(t, pool, judging(join(t, pool, uuid.New())), Config{})
	if _, err := a.Plan(t.Context(), app, 4); err != nil {
		t.Fatal(err)
	}
	// Their ranges differ, and each asks for what is its own.
	low, high := event.ShardRange{First: 0, Last: 1, Count: 4}, event.ShardRange{First: 2, Last: 3, Count: 4}
	a.survey(t, low, low)
	b.survey(t, high, high)
	if claimed, err := a.Claim(t.Context(), app, []event.Shard{{ID: 0, Count: 4}, {ID: 1, Count: 4}}); err != nil || len(claimed) != 2 {
		t.Fatal(claimed, err)
	}
	lapse(t, pool, a.instance)
	lapse(t, pool, b.instance)
	want := event.Survey{Self: a.instance.ID(), Peers: []int64{a.instance.ID()}, Owned: []int{0, 1}, Free: []int{}, Shards: 4}
	if diff := cmp.Diff(want, a.survey(t, low, low)); diff != "" {
		t.Errorf("of one whose lease lapsed (-want +got):\n%s", diff)
	}
	want = event.Survey{Self: b.instance.ID(), Peers: []int64{b.instance.ID()}, Owned: []int{}, Free: []int{2, 3}, Shards: 4}
	if diff := cmp.Diff(want, b.survey(t, high, high)); diff != "" {
		t.Errorf("beside one whose lease lapsed (-want +got):\n%s", diff)
	}
	if err := b.instance.beat(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := a.survey(t, low, low); len(got.Owned) != 0 || len(got.Peers) != 0 {
		t.Errorf("of one that has an heir: %+v", got)
	}
}

func TestSurveyOfRanges(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	a := open(t, pool, join(t, pool, uuid.New()), Config{})
	b := open(t, pool, join(t, pool, uuid.New()), Config{})
	if _, err := a.Plan(t.Context(), app, 16); err != nil {
		t.Fatal(err)
	}
	low, high := event.ShardRange{First: 0, Last: 3, Count: 16}, event.ShardRange{First: 8, Last: 9, Count: 16}
	if got := a.survey(t, low, low); got.Shards != 4 || len(got.Free) != 4 {
		t.Errorf("a range of 4: %+v", got)
	}
	if got := b.survey(t, high, high); got.Shards != 6 || !slices.Equal(got.Free, []int{8, 9}) || len(got.Peers) != 1 {
		t.Errorf("a range of 2 beside a range of 4: %+v", got)
	}
	// Both are willing to run all shards of another set.
	if _, err := a.Replan(t.Context(), app, event.Plan{Version: 1}, event.Plan{Current: 16, Next: 2, Phase: event.Warming}); err != nil {
		t.Fatal(err)
	}
	if got := a.survey(t, event.ShardRange{First: 0, Last: 1, Count: 2}, low); len(got.Peers) != 2 || got.Shards != 2 {
		t.Errorf("another set: %+v", got)
	}
}

func TestDelivered(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	b := open(t, pool, join(t, pool, uuid.New()), Config{}).start(t)
	s := b.claim(t, shard0)
	since := time.Now().UTC().Add(-time.Second)
	early, e, unwanted := wanted(shard0, 1), wanted(shard0, 2), wanted(shard0, 3)
	early.ReceivedAt = since.Add(-time.Second)
	unwanted.Name = "UNWANTED"
	s.appendAll(t, early, e, unwanted)
	if err := s.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	delivered, err := b.Delivered(t.Context(), shard0.Count, since)
	if err != nil || len(delivered) != 1 || delivered[0].Name != "WANTED" || delivered[0].Sum != md5.Sum(e.Data) {
		t.Fatalf("%+v, %v", delivered, err)
	}
	if none, err := b.Delivered(t.Context(), shard0.Count+1, since); err != nil || len(none) != 0 {
		t.Errorf("another set: %+v, %v", none, err)
	}
}
