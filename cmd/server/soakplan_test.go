package main

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// habit is the behavior of a callback, or the fate of its listener.
type habit string

// The habits. Each round has one listener per habit.
const (
	takesAll  habit = "takes all"
	slow      habit = "takes 50 to 200 ms"
	faulty    habit = "answers 500 to every tenth attempt"
	flapping  habit = "answers 503 for a second, over and over"
	limited   habit = "answers 429 when more than 4 are in flight"
	hanging   habit = "hangs now and then"
	picky     habit = "never takes certain events"
	vanishing habit = "cuts all connections for a while"
	goneSoon  habit = "answers 410 after a while"
	deleted   habit = "is deleted"
	switched  habit = "is disabled, enabled and sent the missed events"
	ordered   habit = "wants each guild's events in order"
	impatient habit = "has a max_age, and answers 503 for a while"
	modeled   habit = "wants models"
)

// registrations lists the listeners, with what they register for.
var registrations = []struct {
	habit       habit
	event, more string // more are fields of the registration
}{
	{takesAll, "RAW_*", ``},
	{slow, "RAW_MESSAGE_CREATE", `,"max_in_flight":32`},
	{faulty, "RAW_TYPING_START", ``},
	{flapping, "RAW_TYPING_START", ``},
	{limited, "RAW_TYPING_START", ``},
	{hanging, "RAW_GUILD_BAN_ADD", ``},
	{picky, "RAW_GUILD_BAN_ADD", ``},
	{vanishing, "RAW_GUILD_BAN_ADD", ``},
	{goneSoon, "RAW_GUILD_BAN_ADD", ``},
	{deleted, "RAW_GUILD_BAN_ADD", ``},
	{switched, "RAW_GUILD_BAN_ADD", ``},
	{ordered, "RAW_MESSAGE_CREATE", `,"ordering":"guild"`},
	{impatient, "RAW_TYPING_START", `,"max_age":"1s"`},
	{modeled, "MESSAGE_CREATE", ``},
}

// soakEvent is the number of an event, which determines everything else about it.
type soakEvent int

func (e soakEvent) name() string {
	switch e % 10 {
	case 0, 1, 2, 3, 4:
		return "MESSAGE_CREATE"
	case 5, 6, 7:
		return "TYPING_START"
	default:
		return "GUILD_BAN_ADD"
	}
}

// guild returns one of twelve guilds, which cover all shards.
func (e soakEvent) guild() uint64 { return uint64(1+(uint32(e)*2654435761)>>16%12) << 22 }

func (e soakEvent) shard() int { return discordtest.ShardOf(e.guild(), manyShards) }

// parsable reports whether the event can be converted to its model. One message in
// twenty can't.
func (e soakEvent) parsable() bool { return e%40 != 0 }

// data returns the payload. Its field n, which Discord does not have, is the
// number.
func (e soakEvent) data() []byte {
	author := `{"id":"3","username":"a"}`
	if !e.parsable() {
		author = `{}`
	}
	switch e.name() {
	case "MESSAGE_CREATE":
		return fmt.Appendf(nil, `{"id":"%d","channel_id":"2","guild_id":"%d","author":%s,"content":"%0*d","n":%d}`, e+1, e.guild(), author, int(e)%700, 0, e)
	case "TYPING_START":
		return fmt.Appendf(nil, `{"channel_id":"2","guild_id":"%d","user_id":"3","timestamp":1,"n":%d}`, e.guild(), e)
	default:
		return fmt.Appendf(nil, `{"guild_id":"%d","user":{"id":"3","username":"a"},"n":%d}`, e.guild(), e)
	}
}

// wanted reports whether a listener with the pattern wants the event.
func (e soakEvent) wanted(pattern string) bool {
	return pattern == "RAW_*" || pattern == e.name() || pattern == "RAW_"+e.name()
}

// The steps of a round: these, and killed and stopped from chaosplan_test.go.
const (
	beginsAnsweringGone kind = "a callback answers 410"
	isDeleted           kind = "a listener is deleted"
	isDisabled          kind = "a listener is disabled"
	isReplayed          kind = "the listener is enabled, and the missed events are replayed"
	outageBegins        kind = "callbacks are out of order"
	outageEnds          kind = "they work again"
)

// soakStep is one step of a round.
type soakStep struct {
	at     time.Duration // since the beginning, without the times for which servers were away
	kind   kind
	server int           // the server that is restarted, or whose API is called
	away   time.Duration // how long the server is away
}

func (s soakStep) String() string {
	if s.kind == killed || s.kind == stopped {
		return fmt.Sprintf("%s of server %d, away for %v", s.kind, s.server, s.away.Round(time.Millisecond))
	}
	return string(s.kind)
}

// kills reports whether a round's servers are killed, and not only stopped. Every
// second round kills none, so that it can be judged more strictly.
func kills(round uint64, servers int) bool { return (round+uint64(servers))%2 == 1 }

// planSoak plans the steps of a round, in order. The plan depends only on the
// arguments.
func planSoak(seed, round uint64, length time.Duration, servers int) (steps []soakStep) {
	r := rand.New(rand.NewPCG(seed, round))
	between := func(from, to int) time.Duration { // percent of the length
		return length*time.Duration(from)/100 + rand64(r, length*time.Duration(to-from)/100)
	}
	begins := between(20, 40)
	steps = []soakStep{
		{at: between(10, 30), kind: isDisabled},
		{at: between(45, 60), kind: isReplayed},
		{at: between(30, 70), kind: isDeleted},
		{at: between(40, 80), kind: beginsAnsweringGone},
		{at: begins, kind: outageBegins},
		{at: begins + 2*time.Second + rand64(r, time.Second), kind: outageEnds}, // short enough that most deliveries outlive it
	}
	outlived := false
	for at := between(10, 25); at < length*9/10; at += 2*time.Second + rand64(r, length/10) {
		s := soakStep{at: at, kind: stopped, away: rand64(r, time.Second)}
		if kills(round, servers) && r.IntN(3) > 0 {
			s.kind = killed
			if length >= cycleLength && !outlived {
				outlived = true
				s.away = 12*time.Second + rand64(r, 2*time.Second) // longer than the lease, so another server takes over
			}
		}
		steps = append(steps, s)
	}
	for i := range steps {
		steps[i].server = r.IntN(servers)
	}
	slices.SortStableFunc(steps, func(a, b soakStep) int { return int(a.at - b.at) })
	return steps
}

// TestSoakPlanFollowsFromItsSeed checks that the same seed makes the same plan, and
// that even a short plan has every kind of step that its round needs.
func TestSoakPlanFollowsFromItsSeed(t *testing.T) {
	t.Parallel()
	for seed := range uint64(100) {
		for servers := 1; servers <= 2; servers++ {
			p := planSoak(seed, 0, shortSoak, servers)
			if again := planSoak(seed, 0, shortSoak, servers); !reflect.DeepEqual(p, again) {
				t.Errorf("one seed makes two plans:\n%v\n%v", p, again)
			}
			has := map[kind]int{}
			for _, s := range p {
				has[s.kind]++
			}
			restarts := has[killed] + has[stopped]
			if len(has) < 7 || restarts < 2 || !kills(0, servers) && has[killed] > 0 {
				t.Errorf("seed %d, %d servers: %v", seed, servers, p)
			}
		}
	}
	if kills(0, 1) == kills(1, 1) || kills(0, 1) == kills(0, 2) {
		t.Error("rounds with and without kills don't alternate")
	}
}

// TestSoakEvents checks that all shards get events of all names.
func TestSoakEvents(t *testing.T) {
	t.Parallel()
	of := map[string]int{}
	for e := range soakEvent(1000) {
		of[fmt.Sprint(e.name(), e.shard())]++
		if e.guild() == 0 || !e.parsable() && e.name() != "MESSAGE_CREATE" {
			t.Errorf("event %d: %s of guild %d", e, e.name(), e.guild())
		}
	}
	if len(of) != 3*manyShards {
		t.Errorf("names and shards: %v", of)
	}
}
