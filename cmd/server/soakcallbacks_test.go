package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// customer is a listener and its callback, for one round.
type customer struct {
	*httptest.Server
	habit    habit
	event    string // the pattern of the listener
	called   bool   // the API is called about the listener, for samples too
	id       string // the id of the listener
	seed     uint64
	receiver receiver
	older    *receiver // has the secret before the newest one; guarded by mu
	start    time.Time

	mu       sync.Mutex // guards the fields below
	accounts map[soakEvent]*account
	// firsts lists the events of each guild, in the order of their first
	// acceptance.
	firsts  map[uint64][]soakEvent
	notices []received // Gatehook's own events
	state   callbackState
	gone    time.Time // when the first 410 was answered
	wrong   []string
}

// callbackState is the state that, besides the attempt, decides a callback's
// answer.
type callbackState struct {
	inFlight int
	out      bool // it is out of order
	gone     bool // it answers 410
	flapped  bool // it may fail; begin decides whether it does at the moment
}

// account holds everything that is known about one event for one listener.
type account struct {
	// From the callback: the first webhook-id, the number of POSTs with another
	// one, of all verified POSTs, and of those that it accepted.
	id              string
	otherIDs        int
	posts, accepted int
	arrived         time.Time // the first POST
	// repeated counts the POSTs of the same attempt as the one before: a kept connection
	// that ends without a byte of an answer costs no attempt.
	repeated    int
	lastAttempt uint64
	// From the API: the ids and states of its deliveries.
	ids, states []string
	// From the attempts: how many were recorded, how many of them as delivered,
	// and how many without an answer.
	recorded, delivered, unanswered int
}

func newCustomer(t *testing.T, h habit, eventName string, seed uint64) *customer {
	t.Helper()
	c := &customer{
		habit: h, event: eventName, seed: seed, start: time.Now(),
		accounts: map[soakEvent]*account{}, firsts: map[uint64][]soakEvent{},
	}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

// secret returns the secret with which the listener is registered.
func (c *customer) secret() string {
	return "whsec_" + base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%32s", c.URL))
}

// set changes how the callback behaves from now on.
func (c *customer) set(change func(*callbackState)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.state)
}

// reply is a callback's reaction to an attempt.
type reply struct {
	status int // 0 cuts the connection
	after  time.Duration
	// hangs means that the callback never answers; it still accepts the event if
	// status is 2xx.
	hangs bool
}

// replyTo decides the reply. luck is in [0,1).
func replyTo(h habit, e soakEvent, luck float64, s callbackState) reply {
	fails := func(when bool, status int) reply {
		if when {
			return reply{status: status}
		}
		return reply{status: http.StatusNoContent}
	}
	switch h {
	case slow:
		return reply{status: http.StatusNoContent, after: 50*time.Millisecond + time.Duration(luck*float64(150*time.Millisecond))}
	case faulty, ordered:
		return fails(luck < 0.1, http.StatusInternalServerError)
	case flapping:
		return fails(s.flapped, http.StatusServiceUnavailable)
	case limited:
		if s.inFlight > 4 {
			return reply{status: http.StatusTooManyRequests}
		}
		return reply{status: http.StatusOK, after: 30 * time.Millisecond}
	case hanging:
		switch {
		case luck < 0.02:
			return reply{hangs: true}
		case luck < 0.04:
			return reply{status: http.StatusOK, hangs: true}
		}
	case picky:
		return fails(e%40 == 8, http.StatusBadRequest)
	case vanishing:
		return fails(s.out, 0)
	case impatient:
		return fails(s.out, http.StatusServiceUnavailable)
	case goneSoon:
		return fails(s.gone, http.StatusGone)
	}
	return reply{status: http.StatusNoContent}
}

// ServeHTTP implements http.Handler.
func (c *customer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the server was killed while it sent the request
	}
	got, err := c.read(r, body)
	if err != nil {
		c.blame(err.Error())
		http.Error(w, "the signature is not valid", http.StatusUnauthorized)
		return
	}
	var numbered struct{ N *soakEvent }
	if err := json.Unmarshal(got.data, &numbered); err != nil {
		c.blame(fmt.Sprintf("delivery %s: %v", got.id, err))
	}
	if numbered.N == nil {
		c.mu.Lock()
		c.notices = append(c.notices, got)
		c.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
		return
	}
	reply := c.begin(*numbered.N, got)
	defer c.end()
	if !c.keep(r, reply, *numbered.N) {
		panic(http.ErrAbortHandler) // closes the connection without an answer
	}
	if reply.status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(reply.status)
}

// read verifies a delivery. One that was signed before a rotation may arrive after it.
func (c *customer) read(r *http.Request, body []byte) (received, error) {
	c.mu.Lock()
	older := c.older
	c.mu.Unlock()
	got, err := c.receiver.read(r, body)
	if err != nil && older != nil {
		got, err = older.read(r, body)
	}
	return got, err
}

// trust changes the secret, and keeps the one before.
func (c *customer) trust(before, secret string) error {
	older := &receiver{}
	if err := older.trust(before); err != nil {
		return err
	}
	c.mu.Lock()
	c.older = older
	c.mu.Unlock()
	return c.receiver.trust(secret)
}

// begin records a POST and decides the reply.
func (c *customer) begin(e soakEvent, got received) reply {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.accounts[e]
	if a == nil {
		a = &account{id: got.id, arrived: time.Now()}
		c.accounts[e] = a
	}
	a.posts++
	if a.id != got.id {
		a.otherIDs++
	}
	if got.event != e.name() && !bytes.Equal(got.data, e.data()) {
		c.wrong = append(c.wrong, fmt.Sprintf("event %d arrived as %s, want %s", e, got.data, e.data()))
	}
	attempt, err := strconv.ParseUint(got.attempt, 10, 32)
	if err != nil || attempt == 0 {
		c.wrong = append(c.wrong, fmt.Sprintf("event %d arrived with gatehook-attempt %q", e, got.attempt))
	}
	if attempt == a.lastAttempt {
		a.repeated++
	}
	a.lastAttempt = attempt
	c.state.inFlight++
	s := c.state
	s.flapped = s.flapped && time.Since(c.start)%(3*time.Second) < 1200*time.Millisecond
	reply := replyTo(c.habit, e, rand.New(rand.NewPCG(c.seed+uint64(e), attempt)).Float64(), s)
	if reply.status == http.StatusGone && c.gone.IsZero() {
		c.gone = time.Now()
	}
	return reply
}

func (c *customer) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.inFlight--
}

// keep waits as long as the reply demands, and records an acceptance. It reports
// whether to answer.
func (c *customer) keep(r *http.Request, reply reply, e soakEvent) bool {
	if reply.after > 0 {
		wait := time.NewTimer(reply.after)
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-r.Context().Done():
			return false // the server was killed or has given up
		}
	}
	if reply.status/100 == 2 {
		c.accept(e)
	}
	if reply.hangs {
		<-r.Context().Done()
		return false
	}
	return reply.status != 0
}

func (c *customer) accept(e soakEvent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.accounts[e]
	a.accepted++
	if a.accepted == 1 {
		c.firsts[e.guild()] = append(c.firsts[e.guild()], e)
	}
}

func (c *customer) blame(wrong string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong = append(c.wrong, wrong)
}

// acceptedAfter returns the shards of which the callback accepted an event after e.
func (c *customer) acceptedAfter(e soakEvent) map[int]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	of := map[int]bool{}
	for later, a := range c.accounts {
		if later > e && a.accepted > 0 {
			of[later.shard()] = true
		}
	}
	return of
}

// reportedLocked returns the field id of Gatehook's own events with a name, once per
// event, however often the event arrived.
func (c *customer) reportedLocked(name, id string) (ids []string) {
	seen := map[string]bool{}
	for _, got := range c.notices {
		if got.event == event.RawPrefix+name && !seen[got.eventID] {
			seen[got.eventID] = true
			ids = append(ids, field(got.data, id))
		}
	}
	return ids
}
