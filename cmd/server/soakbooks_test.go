package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/delivery"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/journal"
)

// soakBooks is what the API and the tables say at the end of a round.
type soakBooks struct {
	// committed is when each event was stored, so that its listeners were found
	// before.
	committed map[soakEvent]time.Time
	// exhausted are the deliveries in that state.
	exhausted map[string]bool
	// kept is how many rows retries should have, by listener and state.
	kept map[waits]int
}

// waits is a kind of row of retries.
type waits struct {
	listener int64
	state    string
}

// readBooks adds what was recorded to the accounts of the callbacks, and blames
// what no account is for.
func (r *soakRound) readBooks(v *soakVerdict) *soakBooks {
	r.t.Helper()
	b := &soakBooks{committed: map[soakEvent]time.Time{}, exhausted: map[string]bool{}, kept: map[waits]int{}}
	attempts := r.readAttempts()
	for _, c := range r.customers {
		if c.habit != deleted {
			v.blame(c.habit, r.readDeliveries(c, b))
		}
		for _, a := range c.accounts {
			for _, id := range append(slices.Clip(a.ids), a.id) {
				made := attempts[id]
				a.recorded, a.delivered, a.unanswered = a.recorded+made.recorded, a.delivered+made.delivered, a.unanswered+made.unanswered
				delete(attempts, id) // most ids are there twice: as listed, and as they came
			}
		}
	}
	return b
}

// readDeliveries pages through what the API lists of a listener.
func (r *soakRound) readDeliveries(c *customer, b *soakBooks) (wrong []string) {
	r.t.Helper()
	query := "?limit=250"
	for {
		page := decode[deliveryPage](r.t, r.servers[0], "GET", "/listeners/"+c.id+"/deliveries"+query, "", http.StatusOK)
		for _, d := range page.Data {
			id, err := delivery.ParseID(d.ID)
			if err != nil {
				r.t.Fatal(err)
			}
			if d.Status != stateDelivered {
				b.kept[waits{id.Listener, d.Status}]++
			}
			b.exhausted[d.ID] = d.Status == stateExhausted
			e, known := r.numbers[d.EventID]
			switch {
			case known && e.wanted(c.event):
				a := c.accounts[e]
				if a == nil {
					a = &account{}
					c.accounts[e] = a
				}
				a.ids, a.states = append(a.ids, d.ID), append(a.states, d.Status)
				if c.habit == takesAll {
					b.committed[e] = new(journal.Store).Committed(id.Key.Batch)
				}
			case known || c.habit != takesAll:
				wrong = append(wrong, fmt.Sprintf("delivery %s of a %s that it does not want", d.ID, d.Event))
			case d.Status != stateDelivered: // one of Gatehook's own
				wrong = append(wrong, fmt.Sprintf("delivery %s of a %s is %s", d.ID, d.Event, d.Status))
			}
		}
		if page.NextCursor == nil {
			return wrong
		}
		query = "?limit=250&cursor=" + url.QueryEscape(*page.NextCursor)
	}
}

// recorded sums up the attempts of a delivery.
type recorded struct{ recorded, delivered, unanswered int }

// readAttempts reads the attempts of all deliveries of the round at once: one by
// one through the API would take longer than the round.
func (r *soakRound) readAttempts() map[string]recorded {
	r.t.Helper()
	rows, err := r.database.Query(r.t.Context(), `SELECT batch_id, ordinal, listener_id, count(*), count(*) FILTER (WHERE delivered), count(*) FILTER (WHERE status = 0)
		FROM attempts WHERE listener_id = ANY($1) GROUP BY 1, 2, 3`, r.listeners())
	if err != nil {
		r.t.Fatal(err)
	}
	all := map[string]recorded{}
	var id delivery.ID
	var one recorded
	if _, err := pgx.ForEachRow(rows, []any{&id.Key.Batch, &id.Key.Ordinal, &id.Listener, &one.recorded, &one.delivered, &one.unanswered}, func() error {
		all[id.String()] = one
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
	return all
}

// listeners are the numbers of the listeners of these habits, or of all.
func (r *soakRound) listeners(of ...habit) (ids []int64) {
	r.t.Helper()
	for _, c := range r.customers {
		if id, ok := event.ParseListenerID(c.id); !ok {
			r.t.Fatalf("%q is not a listener's id", c.id)
		} else if len(of) == 0 || slices.Contains(of, c.habit) {
			ids = append(ids, id)
		}
	}
	return ids
}

// judge compares what was sent, what came and what was recorded.
func (r *soakRound) judge() *soakVerdict {
	r.t.Helper()
	for _, c := range r.customers {
		c.mu.Lock()
		defer c.mu.Unlock()
	}
	v := newSoakVerdict()
	b := r.readBooks(v)
	for _, c := range r.customers {
		v.blame(c.habit, c.wrong)
		v.blame(c.habit, r.judgeCustomer(c, b, v))
	}
	good := r.customer(takesAll)
	told := good.told("GATEHOOK_DELIVERY_EXHAUSTED", "delivery_id")
	for _, id := range told {
		if !b.exhausted[id] {
			v.blame(takesAll, []string{"it was told that " + id + " is exhausted, which is not"})
		}
		delete(b.exhausted, id)
	}
	for id, exhausted := range b.exhausted {
		if exhausted {
			v.blame(takesAll, []string{"it was not told that " + id + " is exhausted"})
		}
	}
	gone := r.customer(goneSoon)
	if told := good.told("GATEHOOK_LISTENER_DISABLED", "listener_id"); !slices.Equal(told, []string{gone.id}) {
		v.blame(takesAll, []string{fmt.Sprintf("it was told of disabled listeners %v, want %s once", told, gone.id)})
	}
	v.wrong = append(v.wrong, r.judgeTables(b)...)
	for _, state := range []string{stateDelivered, stateExhausted, stateExpired, stateUnparsable} {
		if v.states[state] == 0 {
			v.wrong = append(v.wrong, "no delivery ended "+state+": that is not what is to be tested")
		}
	}
	return v
}

// judgeCustomer judges all that one listener wants. Of one that was deleted
// there are only attempts.
func (r *soakRound) judgeCustomer(c *customer, b *soakBooks, v *soakVerdict) (wrong []string) {
	for e := r.first; e < r.next; e++ {
		if !e.wanted(c.event) {
			continue
		}
		a := c.accounts[e]
		if a == nil {
			a = &account{}
		}
		if c.habit == deleted {
			if a.delivered > a.accepted || a.accepted > a.delivered+a.unanswered && !r.kills {
				wrong = append(wrong, fmt.Sprintf("event %d: recorded as delivered %d times, accepted %d times", e, a.delivered, a.accepted))
			}
			if e >= r.deletedAt && a.posts > 0 && len(r.servers) == 1 { // another server may not know yet
				wrong = append(wrong, fmt.Sprintf("event %d came, sent after the listener was deleted", e))
			}
			continue
		}
		committed := b.committed[e]
		f := judgeAccount(a, terms{
			habit: c.habit, parsable: e.parsable(), attempts: len(strings.Split(soakSchedule, ",")) + 1, killed: r.kills,
			missed: c.habit == goneSoon && !c.gone.IsZero() && committed.After(c.gone),
		})
		v.add(f)
		for _, w := range f.wrong {
			wrong = append(wrong, fmt.Sprintf("event %d: %s", e, w))
		}
	}
	if c.habit == ordered {
		for _, guild := range slices.Sorted(maps.Keys(c.firsts)) {
			wrong = append(wrong, judgeOrder(c.firsts[guild])...)
		}
	}
	return wrong
}

// judgeTables looks for what is left where nothing should be: retries has a row
// for each delivery that the API lists in another state than delivered, and no
// other, in nobody's hands.
func (r *soakRound) judgeTables(b *soakBooks) (wrong []string) {
	r.t.Helper()
	if n := r.count(`SELECT count(*) FROM retries WHERE owner IS NOT NULL`); n > 0 {
		wrong = append(wrong, fmt.Sprintf("%d rows of retries are in somebody's hands", n))
	}
	// A POST that was in flight while its listener was deleted may have left one.
	rows, err := r.database.Query(r.t.Context(), `SELECT listener_id, state, count(*) FROM retries WHERE listener_id = ANY($1) AND NOT listener_id = ANY($2)
		GROUP BY 1, 2`, r.listeners(), r.listeners(deleted))
	if err != nil {
		r.t.Fatal(err)
	}
	found := map[waits]int{}
	var of waits
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&of.listener, &of.state, &n}, func() error {
		found[of] = n
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
	if !maps.Equal(found, b.kept) {
		wrong = append(wrong, fmt.Sprintf("retries has the rows %v, the API lists %v", found, b.kept))
	}
	return wrong
}

func (s *soak) count(query string, args ...any) (n int) {
	s.t.Helper()
	if err := s.database.QueryRow(s.t.Context(), query, args...).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// field reads a text out of an object.
func field(object json.RawMessage, name string) string {
	var fields map[string]any
	if json.Unmarshal(object, &fields) != nil {
		return ""
	}
	text, _ := fields[name].(string)
	return text
}
