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

// soakBooks holds the state according to the API and the tables at the end of a
// round.
type soakBooks struct {
	// committed is when each event was stored; its listeners were matched before.
	committed map[soakEvent]time.Time
	// exhausted has an entry per delivery: whether it is exhausted.
	exhausted map[string]bool
	// kept is how many rows the table retries should have, by listener and state.
	kept map[keptRows]int
}

// keptRows names a group of rows in the table retries.
type keptRows struct {
	listener int64
	state    string
}

// readBooks adds the recorded deliveries and attempts to the accounts of the
// callbacks, and reports deliveries that belong to no account.
func (r *soakRound) readBooks(v *soakVerdict) *soakBooks {
	r.t.Helper()
	b := &soakBooks{committed: map[soakEvent]time.Time{}, exhausted: map[string]bool{}, kept: map[keptRows]int{}}
	attempts := r.readAttempts()
	for _, c := range r.customers {
		if c.habit != deleted {
			v.blame(c.habit, r.readDeliveries(c, b))
		}
		for _, a := range c.accounts {
			for _, id := range append(slices.Clip(a.ids), a.id) {
				made := attempts[id]
				a.recorded, a.delivered, a.unanswered = a.recorded+made.recorded, a.delivered+made.delivered, a.unanswered+made.unanswered
				delete(attempts, id) // most ids occur twice, as listed and as received
			}
		}
	}
	return b
}

// readDeliveries reads all pages of a listener's deliveries.
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
				b.kept[keptRows{id.Listener, d.Status}]++
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
			case !known && c.called: // a sample
			case known || c.habit != takesAll:
				wrong = append(wrong, fmt.Sprintf("delivery %s of a %s that it does not want", d.ID, d.Event))
			case d.Status != stateDelivered: // one of Gatehook's own events
				wrong = append(wrong, fmt.Sprintf("delivery %s of a %s is %s", d.ID, d.Event, d.Status))
			}
		}
		if page.NextCursor == nil {
			return wrong
		}
		query = "?limit=250&cursor=" + url.QueryEscape(*page.NextCursor)
	}
}

// recorded counts the recorded attempts of a delivery: all of them, those that
// delivered it and those without an answer.
type recorded struct{ recorded, delivered, unanswered int }

// readAttempts reads the attempts of all deliveries of the round from the table:
// reading them one by one from the API would take longer than the round.
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

// listeners returns the numbers of the listeners with these habits, or of all.
func (r *soakRound) listeners(of ...habit) (ids []int64) {
	r.t.Helper()
	ids = []int64{} // nil would be NULL
	for _, c := range r.customers {
		if id, ok := event.ParseListenerID(c.id); !ok {
			r.t.Fatalf("%q is not a listener's id", c.id)
		} else if len(of) == 0 || slices.Contains(of, c.habit) {
			ids = append(ids, id)
		}
	}
	return ids
}

// judge compares the events sent, the POSTs received and the records.
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
	for _, id := range good.reportedLocked("GATEHOOK_DELIVERY_EXHAUSTED", "delivery_id") {
		if !b.exhausted[id] {
			v.blame(takesAll, []string{"delivery " + id + " was reported as exhausted, but is not"})
		}
		delete(b.exhausted, id)
	}
	for id, exhausted := range b.exhausted {
		if exhausted {
			v.blame(takesAll, []string{"delivery " + id + " is exhausted, but was not reported"})
		}
	}
	gone := r.customer(goneSoon)
	if reported := good.reportedLocked("GATEHOOK_LISTENER_DISABLED", "listener_id"); !slices.Equal(reported, []string{gone.id}) {
		v.blame(takesAll, []string{fmt.Sprintf("reported disabled listeners: %v, want %s once", reported, gone.id)})
	}
	v.wrong = append(v.wrong, r.judgeTables(b)...)
	for _, state := range []string{stateDelivered, stateExhausted, stateExpired, stateUnparsable} {
		if v.states[state] == 0 {
			v.wrong = append(v.wrong, "no delivery ended "+state+", so the test did not cover that state")
		}
	}
	return v
}

// judgeCustomer judges all events that a listener wants. For a deleted listener
// only attempts are left.
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
			if a.delivered > a.accepted || a.accepted > a.delivered+a.unanswered+a.repeated && !r.kills {
				wrong = append(wrong, fmt.Sprintf("event %d: recorded as delivered %d times, accepted %d times", e, a.delivered, a.accepted))
			}
			if e >= r.deletedAt && a.posts > 0 && len(r.servers) == 1 { // a second server may not know yet
				wrong = append(wrong, fmt.Sprintf("event %d arrived, although it was sent after the listener was deleted", e))
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

// judgeTables looks for rows that should not be left. The table retries must have
// a row for each delivery that the API does not list as delivered, and no others,
// and no server may own any of them.
func (r *soakRound) judgeTables(b *soakBooks) (wrong []string) {
	r.t.Helper()
	if n := r.count(`SELECT count(*) FROM retries WHERE owner IS NOT NULL`); n > 0 {
		wrong = append(wrong, fmt.Sprintf("%d rows of retries still have an owner", n))
	}
	// A POST that was in flight while its listener was deleted may have left a row.
	rows, err := r.database.Query(r.t.Context(), `SELECT listener_id, state, count(*) FROM retries WHERE listener_id = ANY($1) AND NOT listener_id = ANY($2)
		GROUP BY 1, 2`, r.listeners(), r.listeners(deleted))
	if err != nil {
		r.t.Fatal(err)
	}
	found := map[keptRows]int{}
	var of keptRows
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

// field returns a text field of an object, or "".
func field(object json.RawMessage, name string) string {
	var fields map[string]any
	if json.Unmarshal(object, &fields) != nil {
		return ""
	}
	text, _ := fields[name].(string)
	return text
}
