package main

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"
)

// kind is the kind of a fault.
type kind string

// The light faults: those of connections, each on one shard, of Discord's REST
// API and of the callbacks. They overlap with each other and with heavy ones.
const (
	dropped       kind = "TCP connection ended"
	reset         kind = "TCP connection reset"
	closed4000    kind = "closed with 4000"
	closed1001    kind = "closed with 1001"
	closedNoCode  kind = "closed without a code"
	halfOpen      kind = "half-open"
	corrupt       kind = "frame that can't be inflated"
	textFrame     kind = "text frame in a compressed stream"
	oddPayload    kind = "payload with an unknown op"
	reconnect     kind = "op 7"
	resumable     kind = "op 9 true"
	invalidated   kind = "op 9 false"
	closed4009    kind = "closed with 4009"
	asked         kind = "heartbeat requested"
	noAcks        kind = "heartbeats not acknowledged"
	resumeClosed  kind = "RESUME answered by a close without a code"
	resumeDropped kind = "RESUME answered by the end of the connection"
	resumeOp7     kind = "RESUME answered by op 7"
	resumeTrue    kind = "RESUME answered by op 9 true"
	resumeFalse   kind = "RESUME answered by op 9 false"
	resumeCut     kind = "connection ended in the middle of the replay"
	identifyCut   kind = "session invalidated, and IDENTIFY answered by the end of the connection"
	dialReset     kind = "dials reset"
	dialRefused   kind = "dials answered by 503"
	helloLate     kind = "HELLO late"
	botLimited    kind = "GET /gateway/bot answered by 429"
	botBroken     kind = "GET /gateway/bot answered by 500"
	callback500   kind = "callbacks answer 500"
	callback503   kind = "callbacks answer 503"
	callbackCut   kind = "callbacks cut the connection"
	callbackLost  kind = "callbacks' answers get lost"
)

var lightKinds = []kind{
	dropped, reset, closed4000, closed1001, closedNoCode, halfOpen, corrupt, textFrame, oddPayload, reconnect, resumable,
	invalidated, closed4009, asked, noAcks, resumeClosed, resumeDropped, resumeOp7, resumeTrue, resumeFalse, resumeCut,
	identifyCut, dialReset, dialRefused, helloLate, botLimited, botBroken, callback500, callback503, callbackCut, callbackLost,
}

// The heavy faults: those of the servers' processes and of their database. They
// happen one after the other.
const (
	killed       kind = "SIGKILL"
	stopped      kind = "SIGTERM"
	paused       kind = "SIGSTOP"
	pausedLong   kind = "SIGSTOP for longer than the lease"
	databaseSlow kind = "database slow"
	databaseHeld kind = "database does not answer"
	databaseCut  kind = "connections to the database reset"
	databaseDown kind = "database stopped"
	killedSlow   kind = "SIGKILL while the database is slow"
	killedLong   kind = "SIGKILL, and away for longer than the lease"
	databaseLong kind = "database stopped for longer than the lease"
	// promoted happens once, in a run of three servers.
	promoted kind = "standby promoted"
)

// heavyKinds lists how long each heavy fault lasts. For a process that ends, this
// is how long it is away.
var heavyKinds = []struct {
	kind     kind
	from, to time.Duration
}{
	{killed, 0, 2 * time.Second},
	{databaseHeld, time.Second, 3 * time.Second},
	{stopped, 0, time.Second},
	{databaseSlow, time.Second, 3 * time.Second},
	{paused, 2 * time.Second, 4 * time.Second},
	{databaseCut, time.Second, 2 * time.Second},
	{killedSlow, time.Second, 2 * time.Second},
	{databaseDown, 2 * time.Second, 4 * time.Second},
	{pausedLong, 12 * time.Second, 14 * time.Second},
	{killedLong, 12 * time.Second, 14 * time.Second},
	{databaseLong, 12 * time.Second, 14 * time.Second},
}

// fault is one fault of a plan.
type fault struct {
	at    time.Duration // since the beginning, at the earliest
	kind  kind
	lasts time.Duration
	shard int
	// server is the number of the server, from 0; for faults of servers only.
	server int
	times  int
}

func (f fault) String() string {
	return fmt.Sprintf("%6.2fs %s (shard %d, server %d, %d times, %v)", f.at.Seconds(), f.kind, f.shard, f.server, f.times, f.lasts.Round(time.Millisecond))
}

// plan holds the faults of one cycle: light ones at their times, heavy ones one
// after the other.
type plan struct{ light, heavy []fault }

// planFaults plans a cycle. The plan depends only on the arguments. It uses every
// kind of fault, in a random order, before it repeats any. Heavy faults that don't
// fit into the cycle are left out.
func planFaults(seed, cycle uint64, length time.Duration, servers int) plan {
	r := rand.New(rand.NewPCG(seed, cycle))
	var p plan
	var light, heavy deck
	for at := time.Duration(0); at < length; at += 200*time.Millisecond + rand64(r, 400*time.Millisecond) {
		p.light = append(p.light, fault{
			at: at, kind: lightKinds[light.draw(r, len(lightKinds))], shard: r.IntN(manyShards),
			times: 1 + r.IntN(2), lasts: 300*time.Millisecond + rand64(r, time.Second),
		})
	}
	at := time.Duration(0)
	for range 2 * len(heavyKinds) {
		k := heavyKinds[heavy.draw(r, len(heavyKinds))]
		f := fault{at: at, kind: k.kind, server: r.IntN(servers), lasts: k.from + rand64(r, k.to-k.from)}
		pause := 500*time.Millisecond + rand64(r, time.Second)
		if at+f.lasts < length {
			p.heavy = append(p.heavy, f)
			at += f.lasts + pause
		}
	}
	if servers > 2 && cycle == 0 {
		p.heavy = slices.Insert(p.heavy, len(p.heavy)/2, fault{kind: promoted, lasts: time.Second})
	}
	return p
}

func rand64(r *rand.Rand, n time.Duration) time.Duration { return time.Duration(r.Int64N(int64(n))) }

// deck deals the numbers below n, and is shuffled again after the last one.
type deck []int

func (d *deck) draw(r *rand.Rand, n int) int {
	if len(*d) == 0 {
		*d = r.Perm(n)
	}
	top := (*d)[0]
	*d = (*d)[1:]
	return top
}

// TestPlanFollowsFromItsSeed checks that the same seed makes the same plan, and
// that even a short plan has every light fault.
func TestPlanFollowsFromItsSeed(t *testing.T) {
	t.Parallel()
	p := planFaults(7, 1, shortLength, 2)
	if again := planFaults(7, 1, shortLength, 2); !reflect.DeepEqual(p, again) {
		t.Errorf("one seed makes two plans:\n%v\n%v", p, again)
	}
	if other := planFaults(7, 2, shortLength, 2); reflect.DeepEqual(p, other) {
		t.Error("the next cycle has the same plan")
	}
	has := map[kind]bool{}
	for _, f := range p.light {
		has[f.kind] = true
	}
	for _, k := range lightKinds {
		if !has[k] {
			t.Errorf("%s is not in a short plan", k)
		}
	}
	if len(p.heavy) < 3 {
		t.Errorf("too few heavy faults: %v", p.heavy)
	}
}
