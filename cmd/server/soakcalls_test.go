package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// callers is how many clients call the API at a time while callbacks misbehave.
const callers = 8

// callsEvery is the time between two events, and the pause of a caller between two calls:
// of all calls, those of the API and those of callbacks, about a third are the API's.
const (
	callsEvery = 10 * time.Millisecond
	callsPause = 30 * time.Millisecond
)

// undisturbed are the habits of the listeners that nobody calls about.
var undisturbed = []habit{takesAll, ordered, modeled}

// TestSoakCalls calls the API in every way for listeners whose callbacks misbehave. The
// books of all listeners must balance, and those that nobody calls about must not notice.
// It logs by how much the calls delay them: run it for longer (GATEHOOK_SOAK=2m) on a quiet
// machine to learn that.
func TestSoakCalls(t *testing.T) {
	t.Parallel()
	length, seed := lengthAndSeed(t, soakLength, shortSoak)
	s := startSoak(t, 1)
	r := &soakRound{soak: s, seed: seed, began: time.Now(), first: s.next, done: map[kind]int{}}
	r.awaitStored()
	for _, reg := range registrations {
		switch reg.habit {
		case goneSoon, deleted, switched, impatient: // these end in another way
		default:
			r.register(reg.habit, reg.event, reg.more)
			r.customer(reg.habit).called = !slices.Contains(undisturbed, reg.habit)
		}
	}
	r.awaitKnown()
	stop := steadily(t, callsEvery, r.send)
	<-time.After(length / 2)
	called := r.upcoming()
	posts := s.servers[0].metric("gatehook_delivery_attempts_total")
	c := &calling{soakRound: r, seed: seed, over: make(chan struct{}), secrets: map[*customer]string{}, answers: map[string]int{}}
	for n := range uint64(callers) {
		c.all.Go(func() { c.call(n) })
	}
	<-time.After(length / 2)
	posts = s.servers[0].metric("gatehook_delivery_attempts_total") - posts
	stop()
	close(c.over)
	c.all.Wait()
	r.customer(flapping).set(func(c *callbackState) { c.flapped = false })
	r.awaitStored()
	r.awaitSettled()
	r.judgeCalls()
	before, during := r.latencies(0, called), r.latencies(called, r.next)
	t.Logf("%d calls of the API beside %.0f POSTs: %v", c.calls.Load(), posts, c.answers)
	t.Logf("from the frame to the POST, of the listeners that nobody calls about: p50 %v without calls, %v with them; p99 %v and %v",
		percentile(before, 50), percentile(during, 50), percentile(before, 99), percentile(during, 99))
	s.finish()
}

// calling are the clients of the API.
type calling struct {
	*soakRound
	seed  uint64
	over  chan struct{}
	all   sync.WaitGroup
	calls atomic.Int64

	rotating sync.Mutex // guards secrets: a receiver trusts the two newest
	secrets  map[*customer]string

	mu      sync.Mutex // guards answers
	answers map[string]int
}

// call makes random calls until it is over.
func (c *calling) call(n uint64) {
	random := rand.New(rand.NewPCG(c.seed, n))
	targets := slices.DeleteFunc(slices.Clone(c.customers), func(to *customer) bool { return !to.called })
	for {
		select {
		case <-c.over:
			return
		case <-time.After(callsPause):
		}
		to := targets[random.IntN(len(targets))]
		switch dice := random.IntN(100); {
		case dice < 2:
			c.ask("replay", "POST", to, "/replay", fmt.Sprintf(`{"since":%q}`, time.Now().Add(-300*time.Millisecond).UTC().Format(time.RFC3339Nano)))
		case dice < 8:
			c.ask("retry", "POST", to, "/retry", fmt.Sprintf(`{"status":["exhausted"],"since":%q}`, time.Now().Add(-time.Second).UTC().Format(time.RFC3339Nano)))
		case dice < 16:
			c.rotate(to)
		case dice < 30:
			c.ask("patch", "PATCH", to, "", fmt.Sprintf(`{"url":"%s/%d"}`, to.URL, random.IntN(2)))
		case dice < 38:
			c.comeAndGo(to)
		case dice < 50:
			c.ask("test", "POST", to, "/test", ``)
		default:
			c.ask("page", "GET", to, "/deliveries?limit=50", ``)
		}
	}
}

// ask makes a call, and fails the test for an answer that says that something is broken.
func (c *calling) ask(name, method string, to *customer, path, body string) (status int, answer string) {
	status, answer, err := c.servers[0].try(method, "/listeners/"+to.id+path, body)
	c.note(name, status, answer, err)
	return status, answer
}

func (c *calling) note(name string, status int, answer string, err error) {
	c.calls.Add(1)
	busy := status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests
	another := name == "register" && status == http.StatusConflict
	if err != nil || status >= 400 && !busy && !another {
		c.t.Errorf("%s: %d %s %v", name, status, answer, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers[fmt.Sprintf("%s %d", name, status)]++
}

func (c *calling) rotate(to *customer) {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	status, answer := c.ask("rotate", "POST", to, "/rotate-secret", ``)
	var rotated struct{ Secret string }
	if status != http.StatusOK {
		return
	}
	if err := json.Unmarshal([]byte(answer), &rotated); err != nil {
		c.t.Errorf("rotate: %v: %s", err, answer)
		return
	}
	before := c.secrets[to]
	if c.secrets[to] = rotated.Secret; before == "" {
		before = to.secret()
	}
	if err := to.trust(before, rotated.Secret); err != nil {
		c.t.Error(err)
	}
}

// comeAndGo registers another listener at a callback that refuses its signatures, and
// deletes it.
func (c *calling) comeAndGo(to *customer) {
	p := c.servers[0]
	status, answer, err := p.try("POST", "/listeners", fmt.Sprintf(`{"event":"GUILD_BAN_REMOVE","url":%q}`, to.URL))
	c.note("register", status, answer, err)
	var created struct{ ID string }
	if status != http.StatusCreated {
		return
	}
	if err := json.Unmarshal([]byte(answer), &created); err != nil {
		c.t.Errorf("register: %v: %s", err, answer)
		return
	}
	status, answer, err = p.try("DELETE", "/listeners/"+created.ID, "")
	c.note("delete", status, answer, err)
}

// judgeCalls compares the events sent, the POSTs received and the records. What was called
// for may arrive more often than once.
func (r *soakRound) judgeCalls() {
	r.t.Helper()
	for _, c := range r.customers {
		c.mu.Lock()
		defer c.mu.Unlock()
	}
	v := newSoakVerdict()
	b := r.readBooks(v)
	for _, c := range r.customers {
		v.blame(c.habit, c.wrong)
		if !c.called {
			v.blame(c.habit, r.judgeCustomer(c, b, v))
			continue
		}
		var wrong []string
		for e := r.first; e < r.next; e++ {
			if a := c.accounts[e]; e.wanted(c.event) {
				if why := judgeCalled(a); why != "" {
					wrong = append(wrong, fmt.Sprintf("event %d: %s: %+v", e, why, a))
				}
			}
		}
		v.blame(c.habit, wrong)
	}
	for _, w := range v.wrong {
		r.t.Error(w)
	}
	r.t.Logf("%d events to %d listeners; deliveries of those that nobody calls about: %v", r.next-r.first, len(r.customers), v.states)
}

// judgeCalled returns what is wrong with the account of a listener for which the API was
// called, or "".
func judgeCalled(a *account) string {
	switch {
	case a == nil || len(a.states) == 0:
		return "not listed"
	case slices.Contains(a.states, statePending):
		return "it still waits"
	case a.accepted > 0 != slices.Contains(a.states, stateDelivered) && a.unanswered == 0:
		return "accepted, or not, unlike what is listed"
	case a.delivered > a.accepted:
		return "recorded as delivered more often than accepted"
	case a.recorded-a.unanswered > a.posts:
		return "more answers recorded than POSTs arrived"
	case a.posts-a.repeated > a.recorded:
		return "more POSTs arrived than attempts are recorded"
	default:
		return ""
	}
}

// latencies returns the times from the frame to the first POST of the events in a range,
// for the listeners that nobody calls about.
func (r *soakRound) latencies(from, to soakEvent) (all []time.Duration) {
	for _, c := range r.customers {
		if c.called || c.habit == ordered { // its order is worth waiting for
			continue
		}
		c.mu.Lock()
		for e, a := range c.accounts {
			if e >= from && e < to && !a.arrived.IsZero() {
				all = append(all, a.arrived.Sub(r.sent[e]))
			}
		}
		c.mu.Unlock()
	}
	slices.Sort(all)
	return all
}

// percentile returns a percentile of sorted times.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, len(sorted)*p/100)].Round(100 * time.Microsecond)
}

// TestJudgeCalled checks that the errors in an account are found.
func TestJudgeCalled(t *testing.T) {
	t.Parallel()
	good := account{states: []string{stateDelivered, stateDelivered}, posts: 3, accepted: 2, recorded: 3, delivered: 2}
	for _, tt := range []struct {
		change func(*account)
		want   string
	}{
		{func(*account) {}, ""},
		{func(a *account) { a.states = nil }, "not listed"},
		{func(a *account) { a.states[1] = statePending }, "still waits"},
		{func(a *account) { a.states = []string{stateExhausted} }, "unlike what is listed"},
		{func(a *account) { a.accepted, a.delivered = 0, 0 }, "unlike what is listed"},
		{func(a *account) { a.delivered = 3 }, "more often than accepted"},
		{func(a *account) { a.recorded = 4 }, "more answers"},
		{func(a *account) { a.posts = 4 }, "more POSTs"},
	} {
		a := good
		a.states = slices.Clone(good.states)
		tt.change(&a)
		if got := judgeCalled(&a); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%+v: %q, want %q", a, got, tt.want)
		}
	}
}
