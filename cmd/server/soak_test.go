package main

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

const (
	// soakLength names the variable that says how long events flow; `make soak`
	// sets it. shortSoak is the default. A longer run consists of rounds of
	// cycleLength, each with its own listeners.
	soakLength = "GATEHOOK_SOAK"
	shortSoak  = 8 * time.Second
	// soakEvery is the time between two events.
	soakEvery    = 5 * time.Millisecond
	soakSchedule = "100ms,200ms,300ms,500ms,700ms,1s"
)

// TestSoakOneServer lets callbacks fail in every way, and stops and kills the
// server. It checks that every event ends in exactly one state for each listener.
func TestSoakOneServer(t *testing.T) {
	t.Parallel()
	runSoak(t, 1)
}

// TestSoakTwoServers is like TestSoakOneServer, with two servers that share the shards.
func TestSoakTwoServers(t *testing.T) {
	t.Parallel()
	runSoak(t, 2)
}

func runSoak(t *testing.T, servers int) {
	t.Helper()
	length, seed := lengthAndSeed(t, soakLength, shortSoak)
	s := startSoak(t, servers)
	for number := uint64(0); length > 0 && !t.Failed(); number++ {
		s.round(seed, number, min(length, cycleLength))
		length -= cycleLength
	}
	s.finish()
}

// soak holds the servers and everything that they depend on.
type soak struct {
	t        *testing.T
	discord  *discordtest.Server
	database *pgxpool.Pool
	servers  []*process

	mu      sync.Mutex // guards the fields below while events flow
	next    soakEvent
	numbers map[string]soakEvent // by event id
	last    [manyShards]int64    // each shard's last sequence number
	sent    map[soakEvent]time.Time
}

// soakRound is a period of load with its own listeners.
type soakRound struct {
	*soak
	seed      uint64
	kills     bool
	customers []*customer
	began     time.Time
	first     soakEvent
	deletedAt soakEvent // the first event sent after the deletion
	done      map[kind]int
}

func startSoak(t *testing.T, servers int) *soak {
	t.Helper()
	url := postgrestest.URL(t)
	s := &soak{
		t: t, numbers: map[string]soakEvent{}, sent: map[soakEvent]time.Time{},
		discord: startDiscordAs(t, discordtest.Config{
			Shards: manyShards, HeartbeatInterval: time.Second, HeartbeatGrace: 2 * time.Second, TrimAcked: true,
		}),
	}
	var err error
	if s.database, err = pgxpool.New(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.database.Close)
	for i := range servers {
		s.servers = append(s.servers, newNamed(t, s.discord, string(rune('a'+i)), "DATABASE_URL="+url, "GATEHOOK_LOG_LEVEL=info",
			"GATEHOOK_ATTEMPT_TIMEOUT=1s", "GATEHOOK_RETRY_SCHEDULE="+soakSchedule))
		s.servers[i].start()
	}
	awaitShards(t, s.discord, manyShards)
	return s
}

// round lets events flow while it takes the steps of a plan, lets everything
// recover, and balances the books.
func (s *soak) round(seed, number uint64, length time.Duration) {
	s.t.Helper()
	r := &soakRound{soak: s, seed: seed + number<<32, kills: kills(number, len(s.servers)), began: time.Now(), first: s.next, done: map[kind]int{}}
	clear(s.numbers)
	clear(s.sent)
	r.awaitStored() // each session needs a stored event, otherwise its loss can't be reported
	for _, reg := range registrations {
		r.register(reg.habit, reg.event, reg.more)
	}
	r.awaitKnown()
	begin := time.Now()
	stop := steadily(s.t, soakEvery, r.send)
	for _, step := range planSoak(seed, number, length, len(s.servers)) {
		<-time.After(time.Until(begin.Add(step.at)))
		s.t.Logf("%5.1fs: %v", time.Since(begin).Seconds(), step)
		r.take(step)
		begin = begin.Add(step.away) // shifts the later steps, so that the times between them stay as planned
	}
	<-time.After(time.Until(begin.Add(length)))
	stop()
	r.customer(flapping).set(func(c *callbackState) { c.flapped = false })
	r.awaitStored()
	r.awaitSettled()
	r.report(number, r.judge())
	for _, c := range r.customers {
		if c.habit != deleted {
			r.forget(c, s.servers[0])
		}
		c.Close()
		c.accounts = nil // those of many rounds would not fit into memory
	}
}

// send sends the next event.
func (r *soakRound) send() {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.next
	r.next++
	r.sent[e] = time.Now()
	sent, err := r.discord.Dispatch(e.shard(), e.name(), e.data())
	if err != nil {
		r.t.Errorf("event %d: %v", e, err)
		return
	}
	r.last[e.shard()] = sent.Seq
	r.numbers[event.DispatchID(1001, sent.Session, event.Shard{ID: e.shard(), Count: manyShards}, sent.Seq).String()] = e
}

// upcoming returns the event that is sent next.
func (r *soakRound) upcoming() soakEvent {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next
}

// register creates a listener whose callback has a habit.
func (r *soakRound) register(h habit, eventName, more string) {
	r.t.Helper()
	c := newCustomer(r.t, h, eventName, r.seed)
	c.set(func(s *callbackState) { s.flapped = true })
	secret := c.secret()
	if err := c.receiver.trust(secret); err != nil {
		r.t.Fatal(err)
	}
	created := decode[struct{ ID string }](r.t, r.servers[0], "POST", "/listeners",
		fmt.Sprintf(`{"event":%q,"url":%q,"secret":%q%s}`, eventName, c.URL, secret, more), http.StatusCreated)
	c.id = created.ID
	r.customers = append(r.customers, c)
}

func (r *soakRound) customer(h habit) *customer {
	return r.customers[slices.IndexFunc(r.customers, func(c *customer) bool { return c.habit == h })]
}

// awaitKnown waits until every server knows every listener.
func (r *soakRound) awaitKnown() {
	r.t.Helper()
	eventually(r.t, time.Minute, "known to all servers", func() (bool, string) {
		for _, p := range r.servers {
			for _, c := range r.customers {
				if status, _ := p.get("/listeners/" + c.id + "/deliveries?limit=1"); status != http.StatusOK {
					return false, p.name + " does not know " + c.id
				}
			}
		}
		return true, ""
	})
}

// awaitStored waits until all sent events are received and stored.
func (r *soakRound) awaitStored() {
	r.t.Helper()
	eventually(r.t, 2*time.Minute, "all stored", func() (bool, string) {
		var stored [manyShards]int64
		// Any server shows this for all shards.
		for _, s := range decode[shardList](r.t, r.servers[0], "GET", "/shards", "", http.StatusOK).Data {
			stored[s.ID] = s.Stored
		}
		for id, sent := range r.last {
			if stored[id] < max(1, sent) { // 1 is READY
				return false, fmt.Sprintf("sent up to %v, stored up to %v", r.last, stored)
			}
		}
		return true, ""
	})
}

// shardList holds the fields of GET /shards that are checked.
type shardList struct {
	Data []struct {
		ID     int
		Stored int64 `json:"seq_stored"`
	}
}

// awaitSettled waits until no delivery is under way, except for those that wait
// for a disabled or deleted listener.
func (r *soakRound) awaitSettled() {
	r.t.Helper()
	state, done := within(2*time.Minute, func() (bool, string) {
		batches := r.count(`SELECT count(*) FROM batches`)
		waiting := r.count(`SELECT count(*) FROM retries WHERE state = 'pending' AND listener_id = ANY($1) AND NOT listener_id = ANY($2)`,
			r.listeners(), r.listeners(goneSoon, deleted))
		inMemory := 0.0
		for _, p := range r.servers {
			inMemory += p.metric("gatehook_delivery_queued") + p.metric("gatehook_delivery_records_queued") + p.metric("gatehook_journal_queue_events")
		}
		return batches+waiting == 0 && inMemory == 0, fmt.Sprintf("%d batches, %d rows of retries, %v in memory", batches, waiting, inMemory)
	})
	if !done {
		r.t.Errorf("deliveries are still under way: %s", state)
	}
}

// take performs a step and returns when it is done.
func (r *soakRound) take(step soakStep) {
	r.t.Helper()
	r.done[step.kind]++
	p := r.servers[step.server]
	p.alive()
	switch step.kind {
	case killed, stopped:
		if step.kind == killed {
			p.stop(syscall.SIGKILL)
		} else {
			p.drain()
		}
		<-time.After(step.away)
		p.start()
	case beginsAnsweringGone:
		r.customer(goneSoon).set(func(s *callbackState) { s.gone = true })
	case isDeleted:
		r.forget(r.customer(deleted), p)
		r.deletedAt = r.upcoming()
	case isDisabled:
		decode[struct{}](r.t, p, "PATCH", "/listeners/"+r.customer(switched).id, `{"enabled":false}`, http.StatusOK)
	case isReplayed:
		r.replay(p)
	case outageBegins, outageEnds:
		for _, h := range []habit{vanishing, impatient} {
			r.customer(h).set(func(s *callbackState) { s.out = step.kind == outageBegins })
		}
	default:
		r.t.Fatalf("no such step: %v", step)
	}
}

// replay enables the listener and, once every server knows that, requests the
// missed events. The replay begins with the round: events received before the
// listener was disabled may have been stored after that.
func (r *soakRound) replay(p *process) {
	r.t.Helper()
	c := r.customer(switched)
	decode[struct{}](r.t, p, "PATCH", "/listeners/"+c.id, `{"enabled":true}`, http.StatusOK)
	enabled := r.upcoming()
	eventually(r.t, time.Minute, "receiving events of all shards again", func() (bool, string) {
		of := c.acceptedAfter(enabled)
		return len(of) == manyShards, fmt.Sprint(of)
	})
	queued := decode[struct{ Queued int }](r.t, p, "POST", "/listeners/"+c.id+"/replay",
		fmt.Sprintf(`{"since":%q}`, r.began.UTC().Format(time.RFC3339Nano)), http.StatusAccepted)
	if queued.Queued == 0 {
		r.t.Error("nothing was replayed")
	}
}

// forget deletes a listener.
func (r *soakRound) forget(c *customer, p *process) {
	r.t.Helper()
	if status, body := p.call("DELETE", "/listeners/"+c.id, ""); status != http.StatusNoContent {
		r.t.Errorf("delete the listener that %s: %d %s", c.habit, status, body)
	}
}

// report logs the result of a round.
func (r *soakRound) report(number uint64, v *soakVerdict) {
	r.t.Helper()
	for _, w := range v.wrong {
		r.t.Error(w)
	}
	memory := 0.0
	for _, p := range r.servers {
		memory = max(memory, p.metric("process_resident_memory_bytes"))
	}
	r.t.Logf("round %d: %d events to %d listeners, %d SIGKILLs, %d SIGTERMs; deliveries: %v; accepted more than once: %v; accepted without a record: %d; the largest server uses %.0f MiB",
		number, r.next-r.first, len(r.customers), r.done[killed], r.done[stopped], v.states, v.twice, v.unrecorded, memory/(1<<20))
}

// finish stops the servers and checks that they left nothing behind. Deleted
// listeners may have rows of retries left, from POSTs that were in flight.
func (s *soak) finish() {
	s.t.Helper()
	for _, p := range s.servers {
		p.finish()
	}
	if n := s.discord.Count(discordtest.Identify, discordtest.AnyShard); n != manyShards {
		s.t.Errorf("%d IDENTIFYs for %d shards", n, manyShards)
	}
	if n := s.count(`SELECT count(*) FROM batches`) + s.count(`SELECT count(*) FROM shards WHERE owner IS NOT NULL`); n > 0 {
		s.t.Errorf("%d batches and shards belong to servers that have stopped", n)
	}
	s.t.Logf("%d RESUMEs; %d rows of retries are left from deleted listeners",
		s.discord.Count(discordtest.Resume, discordtest.AnyShard), s.count(`SELECT count(*) FROM retries`))
}
