package listeners

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gatehook/gatehook/internal/event"
)

func TestMatch(t *testing.T) {
	t.Parallel()
	tb := newTable()
	tb.replace(1, []*event.Listener{
		{ID: 1, Event: "GUILD_BAN_ADD", Enabled: true},
		{ID: 2, Event: "RAW_GUILD_BAN_ADD", Enabled: true},
		{ID: 3, Event: "*", Enabled: true},
		{ID: 4, Event: "RAW_*", Enabled: true},
		{ID: 5, Event: "GUILD_*", Enabled: true},
		{ID: 6, Event: "RAW_GUILD_*", Enabled: true},
		{ID: 7, Event: "GUILD_BAN_ADD"}, // disabled
		{ID: 8, Event: "GUILD_BAN_ADD", Enabled: true, Filter: event.Filter{GuildIDs: []event.Snowflake{10, 11, 10}}},
		{ID: 9, Event: "GUILD_*", Enabled: true, Filter: event.Filter{GuildIDs: []event.Snowflake{11}, UserIDs: []event.Snowflake{30}}},
		{ID: 10, Event: "MESSAGE_CREATE", Enabled: true, Filter: event.Filter{ChannelIDs: []event.Snowflake{20}}},
		{ID: 11, Event: "not an event", Enabled: true},
		{ID: 12, Event: "TOMORROWS_EVENT", Enabled: true},
	})
	tests := []struct {
		name                 string
		guild, channel, user event.Snowflake
		want                 []int64
	}{
		{"GUILD_BAN_ADD", 0, 0, 0, []int64{2, 4, 6, 1, 3, 5}},
		{"GUILD_BAN_ADD", 10, 0, 0, []int64{2, 4, 6, 8, 1, 3, 5}},
		{"GUILD_BAN_ADD", 11, 0, 0, []int64{2, 4, 6, 8, 1, 3, 5}},
		{"GUILD_BAN_ADD", 11, 0, 30, []int64{2, 4, 6, 8, 1, 3, 9, 5}},
		{"GUILD_BAN_ADD", 12, 0, 30, []int64{2, 4, 6, 1, 3, 5}},
		{"MESSAGE_CREATE", 11, 20, 30, []int64{4, 10, 3}},
		{"MESSAGE_CREATE", 11, 21, 30, []int64{4, 3}},
		{"TOMORROWS_EVENT", 0, 0, 0, []int64{4, 12, 3}},
		{"not an event", 0, 0, 0, []int64{4, 3}},
		{"", 0, 0, 0, []int64{4, 3}},
	}
	for _, tt := range tests {
		e := &event.Event{Name: tt.name, GuildID: tt.guild, ChannelID: tt.channel, UserID: tt.user}
		got, _ := tb.match(e)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s of %v, %v, %v (-want +got):\n%s", tt.name, tt.guild, tt.channel, tt.user, diff)
		}
	}
	if tb.needs != event.IntentsAll {
		t.Errorf("the table needs %v", tb.needs)
	}
}

// A table that was built by changes matches like a table that was loaded, and like a
// naive search.
func TestChangesEqualLoading(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	names := []string{"GUILD_BAN_ADD", "GUILD_CREATE", "MESSAGE_CREATE", "READY"}
	ids := func() (list []event.Snowflake) {
		for range r.IntN(3) {
			list = append(list, event.Snowflake(r.IntN(3)+1))
		}
		return list
	}
	grown := newTable()
	now := map[int64]*event.Listener{}
	for version := int64(1); version <= 3000; version++ {
		id := r.Int64N(20)
		l := &event.Listener{
			ID: id, Event: pick("", "RAW_") + pick(append(names, "*", "GUILD_*", "MESSAGE_*")...), Enabled: r.IntN(4) > 0,
			Filter: event.Filter{GuildIDs: ids(), ChannelIDs: ids(), UserIDs: ids()},
		}
		if r.IntN(3) == 0 {
			l = nil
			delete(now, id)
		} else {
			now[id] = l
		}
		if !grown.apply(version, id, l) {
			t.Fatalf("version %d was not accepted as the next one", version)
		}
		var all []*event.Listener
		for _, l := range now {
			all = append(all, l)
		}
		loaded := newTable()
		loaded.replace(version, all)
		e := &event.Event{Name: pick(names...), GuildID: event.Snowflake(r.IntN(4)), ChannelID: event.Snowflake(r.IntN(4)), UserID: event.Snowflake(r.IntN(4))}
		want := naive(all, e)
		for how, tb := range map[string]*table{"grown": grown, "loaded": loaded} {
			got, _ := tb.match(e)
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" || tb.needs != loaded.needs {
				t.Fatalf("version %d, %s, %+v, needs %v (-want +got):\n%s", version, how, e, tb.needs, diff)
			}
		}
		if l := now[id]; grown.listener(id) != l {
			t.Fatalf("version %d: listener %d is %v, want %v", version, id, grown.listener(id), l)
		}
	}
}

func naive(all []*event.Listener, e *event.Event) (ids []int64) {
	in := func(list []event.Snowflake, id event.Snowflake) bool {
		return len(list) == 0 || slices.Contains(list, id)
	}
	for _, l := range all {
		p, err := event.ParsePattern(l.Event)
		if err == nil && l.Enabled && p.Matches(e.Name) && in(l.Filter.GuildIDs, e.GuildID) &&
			in(l.Filter.ChannelIDs, e.ChannelID) && in(l.Filter.UserIDs, e.UserID) {
			ids = append(ids, l.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

func TestVersions(t *testing.T) {
	t.Parallel()
	l := func(id int64, name string) *event.Listener {
		return &event.Listener{ID: id, Event: name, Enabled: true}
	}
	tb := newTable()
	tb.replace(5, []*event.Listener{l(1, "READY")})
	if !tb.apply(6, 2, l(2, "GUILD_BAN_ADD")) || tb.currentVersion() != 6 || tb.listener(2) == nil {
		t.Error("the next change was not applied")
	}
	if !tb.apply(6, 3, l(3, "READY")) || tb.listener(3) != nil {
		t.Error("a change that the table has was applied again, or reported as missed")
	}
	if tb.apply(8, 4, l(4, "READY")) || tb.currentVersion() != 6 || tb.listener(4) != nil {
		t.Error("a change after a missed one was applied")
	}
	if tb.replace(5, nil); tb.currentVersion() != 6 || tb.listener(2) == nil {
		t.Error("an older state replaced a newer one")
	}
	if <-tb.changed; tb.intents() != event.IntentGuildModeration {
		t.Errorf("the table needs %v", tb.intents())
	}
	if tb.replace(9, []*event.Listener{l(2, "GUILD_BAN_ADD")}); len(tb.changed) != 0 {
		t.Error("the same needs count as changed")
	}
	if tb.apply(10, 2, nil); len(tb.changed) != 1 || tb.intents() != 0 {
		t.Errorf("without listeners the table needs %v", tb.intents())
	}
}

// Batches keep the slices that match returns: the next match must not change them.
func TestCallerOwnsTheMatches(t *testing.T) {
	t.Parallel()
	tb := newTable()
	var all []*event.Listener
	for i := range 200 {
		all = append(all, &event.Listener{ID: int64(i), Event: "READY", Enabled: true})
	}
	tb.replace(1, all)
	first, _ := tb.match(&event.Event{Name: "READY"})
	kept := slices.Clone(first)
	tb.match(&event.Event{Name: "READY"})
	if len(first) != 200 || !slices.Equal(first, kept) {
		t.Errorf("%d ids, changed by the next match", len(first))
	}
}

// BenchmarkMatch matches an event against ten thousand listeners, registered in the ways
// in which bots register them.
func BenchmarkMatch(b *testing.B) {
	own := func(i int) event.Filter { return event.Filter{GuildIDs: []event.Snowflake{event.Snowflake(i + 1)}} }
	for _, bb := range []struct {
		name string
		of   func(i int) event.Listener
	}{
		{"some for each event", func(i int) event.Listener { return event.Listener{Event: event.Types()[i%79].Name} }},
		{"one per guild", func(i int) event.Listener { return event.Listener{Event: "MESSAGE_CREATE", Filter: own(i)} }},
		{"one per guild, all events", func(i int) event.Listener { return event.Listener{Event: "*", Filter: own(i)} }},
		{"all the same", func(int) event.Listener { return event.Listener{Event: "MESSAGE_CREATE"} }},
		{"none", func(int) event.Listener { return event.Listener{Event: "TYPING_START"} }},
	} {
		b.Run(bb.name, func(b *testing.B) {
			tb := newTable()
			var all []*event.Listener
			for i := range 10000 {
				l := bb.of(i)
				l.ID, l.Enabled = int64(i+1), true
				all = append(all, &l)
			}
			tb.replace(1, all)
			e := &event.Event{Name: "MESSAGE_CREATE", GuildID: 1}
			b.ReportAllocs()
			for b.Loop() {
				tb.match(e)
			}
		})
	}
}

// BenchmarkApply changes one of ten thousand listeners.
func BenchmarkApply(b *testing.B) {
	for _, name := range []string{"MESSAGE_CREATE", "*"} {
		b.Run(name, func(b *testing.B) {
			tb := newTable()
			var all []*event.Listener
			for i := range 10000 {
				all = append(all, &event.Listener{ID: int64(i + 1), Event: name, Enabled: true, URL: fmt.Sprint(i)})
			}
			tb.replace(1, all)
			for b.Loop() {
				tb.apply(tb.currentVersion()+1, 1, all[0])
			}
		})
	}
}
