package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// The states of a delivery in the API.
const (
	statePending    = "pending"
	stateDelivered  = "delivered"
	stateExhausted  = "exhausted"
	stateExpired    = "expired"
	stateUnparsable = "unparsable"
	// stateMissed is the verdict's own state for an event that was stored while
	// its listener was disabled: the API lists no delivery.
	stateMissed = "missed"
)

// terms are the circumstances by which an account is judged.
type terms struct {
	habit    habit
	parsable bool
	attempts int  // how many the schedule allows
	killed   bool // a server was killed in this round, so unrecorded attempts are repeated
	missed   bool // the event was stored when the listener may have been disabled
}

// The reasons why a delivery was accepted more than once.
const (
	replayed     = "replayed"
	answerLost   = "the answer was lost"
	neverWritten = "the server was killed before it recorded the attempt"
)

// finding is the judgment of an account.
type finding struct {
	state      string
	twice      string // why it was accepted more than once; "" if it was not
	unrecorded bool   // it was accepted, but no attempt records this
	wrong      []string
}

// judgeAccount returns the one state in which a delivery has ended, and all
// differences between the books and the callback.
func judgeAccount(a *account, t terms) (f finding) {
	blame := func(format string, args ...any) { f.wrong = append(f.wrong, fmt.Sprintf(format, args...)) }
	switch {
	case len(a.states) == 1:
		f.state = a.states[0]
		if a.posts > 0 && a.id != a.ids[0] || a.otherIDs > 0 {
			blame("arrived as %s and %d others, listed as %s", a.id, a.otherIDs, a.ids[0])
		}
	case len(a.states) > 1:
		blame("listed %d times: %v", len(a.states), a.states)
		return f
	case t.missed && a.posts == 0:
		f.state = stateMissed
	default:
		blame("not listed; %d POSTs arrived", a.posts)
		return f
	}
	if why := judgeState(f.state, a, t); why != "" {
		blame("%s: %s", f.state, why)
	}
	// Every recorded attempt was made, and every attempt made is recorded, unless
	// the server was killed in between.
	lost := min(a.unanswered+a.repeated, a.accepted) // acceptances that the server may not have learned of
	switch {
	case a.delivered > a.accepted:
		blame("recorded as delivered %d times, accepted %d times", a.delivered, a.accepted)
	case a.recorded-a.unanswered > a.posts:
		blame("%d answers recorded, %d POSTs arrived", a.recorded-a.unanswered, a.posts)
	case a.posts-a.repeated > a.recorded && !t.killed:
		blame("%d POSTs arrived, %d attempts are recorded", a.posts, a.recorded)
	}
	f.unrecorded = a.accepted > a.delivered+lost
	maxAccepted := 1
	if t.habit == switched {
		maxAccepted = 2
	}
	switch {
	case a.accepted <= 1:
	case f.unrecorded:
		f.twice = neverWritten
	case a.accepted <= maxAccepted:
		f.twice = replayed
	case a.accepted-lost <= maxAccepted:
		f.twice = answerLost
	default:
		blame("accepted %d times, recorded as delivered %d times", a.accepted, a.delivered)
	}
	if f.unrecorded && !t.killed {
		blame("accepted %d times, %d of them recorded", a.accepted, a.delivered)
	}
	return f
}

// judgeState returns why a state is wrong, or "".
func judgeState(state string, a *account, t terms) string {
	switch {
	case (state == stateUnparsable) != (t.habit == modeled && !t.parsable):
		return "unparsable must be the state of exactly the events that can't be converted to their model"
	case (state == stateDelivered) != (a.delivered > 0):
		return fmt.Sprintf("%d attempts are recorded as delivered", a.delivered)
	case state == stateExhausted && t.habit != goneSoon && a.recorded < t.attempts:
		return fmt.Sprintf("after %d attempts of %d", a.recorded, t.attempts)
	case state == stateExpired && t.habit != impatient, state == statePending && t.habit != goneSoon,
		state == stateMissed && t.habit != goneSoon:
		return "no delivery of this listener can end in this state"
	}
	return ""
}

// judgeOrder returns the events of a guild that were first accepted after a newer
// one.
func judgeOrder(firsts []soakEvent) (wrong []string) {
	for i, e := range firsts {
		if i > 0 && e < firsts[i-1] {
			wrong = append(wrong, fmt.Sprintf("guild %d: event %d after %d", e.guild(), e, firsts[i-1]))
		}
	}
	return wrong
}

// soakVerdict is the result of a round.
type soakVerdict struct {
	states, twice map[string]int
	unrecorded    int
	wrong         []string // errors, only the first of each listener
}

func newSoakVerdict() *soakVerdict {
	return &soakVerdict{states: map[string]int{}, twice: map[string]int{}}
}

func (v *soakVerdict) add(f finding) {
	v.states[f.state]++
	if f.twice != "" {
		v.twice[f.twice]++
	}
	if f.unrecorded {
		v.unrecorded++
	}
}

// blame adds the first few errors of a listener: a long list would be unreadable.
func (v *soakVerdict) blame(h habit, wrong []string) {
	const few = 5
	for _, w := range wrong[:min(few, len(wrong))] {
		v.wrong = append(v.wrong, fmt.Sprintf("the listener that %s: %s", h, w))
	}
	if more := len(wrong) - few; more > 0 {
		v.wrong = append(v.wrong, fmt.Sprintf("the listener that %s: and %d more", h, more))
	}
}

// TestSoakVerdict checks that every error in a delivery is found, and that nothing
// permitted is blamed.
func TestSoakVerdict(t *testing.T) {
	t.Parallel()
	one := func(state string, a account) account {
		a.ids, a.states = []string{"d"}, []string{state}
		if a.posts > 0 {
			a.id = "d"
		}
		return a
	}
	usual := terms{habit: takesAll, parsable: true, attempts: 3}
	with := func(change func(*terms)) terms {
		changed := usual
		change(&changed)
		return changed
	}
	killed := with(func(t *terms) { t.killed = true })
	of := func(h habit) terms { return with(func(t *terms) { t.habit = h }) }
	delivered := one(stateDelivered, account{posts: 1, accepted: 1, recorded: 1, delivered: 1})
	tests := []struct {
		name       string
		account    account
		terms      terms
		wrong      string // a part of the error; "" for none
		twice      string
		unrecorded bool
	}{
		{name: "delivered", account: delivered, terms: usual},
		{name: "delivered at the second attempt", account: one(stateDelivered, account{posts: 2, accepted: 1, recorded: 2, delivered: 1}), terms: usual},
		{name: "missing", terms: usual, wrong: "not listed"},
		{name: "missing after a kill", terms: killed, wrong: "not listed"},
		{name: "missing, although it arrived", account: account{id: "d", posts: 1, accepted: 1, recorded: 1, delivered: 1}, terms: usual, wrong: "not listed"},
		{name: "missed", terms: with(func(t *terms) { t.habit, t.missed = goneSoon, true })},
		{name: "missed, although it arrived", account: account{id: "d", posts: 1}, terms: with(func(t *terms) { t.habit, t.missed = goneSoon, true }), wrong: "not listed"},
		{name: "listed twice", account: account{ids: []string{"d", "e"}, states: []string{stateDelivered, stateDelivered}}, terms: usual, wrong: "listed 2 times"},
		{name: "another id", account: account{id: "e", posts: 1, accepted: 1, recorded: 1, delivered: 1, ids: []string{"d"}, states: []string{stateDelivered}}, terms: usual, wrong: "arrived as e"},
		{name: "two ids", account: one(stateDelivered, account{posts: 2, otherIDs: 1, accepted: 1, recorded: 2, delivered: 1}), terms: usual, wrong: "1 others"},
		{name: "pending", account: one(statePending, account{}), terms: usual, wrong: "can end in this state"},
		{name: "pending for a disabled listener", account: one(statePending, account{}), terms: of(goneSoon)},
		{name: "delivered, never accepted", account: one(stateDelivered, account{posts: 1, recorded: 1, delivered: 1}), terms: usual, wrong: "accepted 0 times"},
		{name: "delivered, but no attempt records this", account: one(stateDelivered, account{posts: 1, accepted: 1, recorded: 1}), terms: killed, wrong: "0 attempts", unrecorded: true},
		{name: "exhausted, although delivered", account: one(stateExhausted, account{posts: 3, accepted: 1, recorded: 3, delivered: 1}), terms: usual, wrong: "1 attempts"},
		{name: "exhausted", account: one(stateExhausted, account{posts: 3, recorded: 3}), terms: usual},
		{name: "exhausted too early", account: one(stateExhausted, account{posts: 2, recorded: 2}), terms: usual, wrong: "after 2 attempts of 3"},
		{name: "gone", account: one(stateExhausted, account{posts: 1, recorded: 1}), terms: of(goneSoon)},
		{name: "expired", account: one(stateExpired, account{posts: 1, recorded: 1}), terms: of(impatient)},
		{name: "expired without a max_age", account: one(stateExpired, account{posts: 1, recorded: 1}), terms: usual, wrong: "can end in this state"},
		{name: "unparsable", account: one(stateUnparsable, account{recorded: 1, unanswered: 1}), terms: with(func(t *terms) { t.habit, t.parsable = modeled, false })},
		{name: "unparsable, although it can be parsed", account: one(stateUnparsable, account{recorded: 1, unanswered: 1}), terms: of(modeled), wrong: "unparsable must be"},
		{name: "delivered, although unparsable", account: delivered, terms: with(func(t *terms) { t.habit, t.parsable = modeled, false }), wrong: "unparsable must be"},
		{name: "raw and unparsable", account: delivered, terms: with(func(t *terms) { t.parsable = false })},
		{name: "recorded twice", account: one(stateDelivered, account{posts: 1, accepted: 1, recorded: 2, delivered: 2}), terms: killed, wrong: "recorded as delivered 2 times"},
		{name: "a failure recorded twice", account: one(stateDelivered, account{posts: 2, accepted: 1, recorded: 3, delivered: 1}), terms: killed, wrong: "3 answers recorded"},
		{name: "an attempt not recorded", account: one(stateDelivered, account{posts: 2, accepted: 1, recorded: 1, delivered: 1}), terms: usual, wrong: "2 POSTs arrived"},
		{name: "an attempt not recorded by a killed server", account: one(stateDelivered, account{posts: 2, accepted: 1, recorded: 1, delivered: 1}), terms: killed},
		{name: "made twice", account: one(stateDelivered, account{posts: 2, accepted: 2, recorded: 2, delivered: 2}), terms: usual, wrong: "accepted 2 times"},
		{name: "made twice, both recorded, and a server killed", account: one(stateDelivered, account{posts: 2, accepted: 2, recorded: 2, delivered: 2}), terms: killed, wrong: "accepted 2 times"},
		{name: "made twice by a killed server", account: one(stateDelivered, account{posts: 2, accepted: 2, recorded: 1, delivered: 1}), terms: killed, twice: neverWritten, unrecorded: true},
		{name: "made twice, once without a record", account: one(stateDelivered, account{posts: 2, accepted: 2, recorded: 1, delivered: 1}), terms: usual, twice: neverWritten, unrecorded: true, wrong: "1 of them recorded"},
		{name: "the answer was lost", account: one(stateDelivered, account{posts: 2, accepted: 2, recorded: 2, delivered: 1, unanswered: 1}), terms: usual, twice: answerLost},
		{name: "the answer was lost, and no later attempt accepted", account: one(stateExhausted, account{posts: 3, accepted: 1, recorded: 3, unanswered: 1}), terms: usual},
		{name: "replayed", account: one(stateDelivered, account{posts: 2, accepted: 2, recorded: 2, delivered: 2}), terms: of(switched), twice: replayed},
		{name: "replayed, and made once more", account: one(stateDelivered, account{posts: 3, accepted: 3, recorded: 3, delivered: 3}), terms: of(switched), wrong: "accepted 3 times"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := judgeAccount(&tt.account, tt.terms)
			wrong := strings.Join(f.wrong, "; ")
			if (wrong == "") != (tt.wrong == "") || !strings.Contains(wrong, tt.wrong) || f.twice != tt.twice || f.unrecorded != tt.unrecorded {
				t.Errorf("%+v", f)
			}
		})
	}
	if got := judgeOrder([]soakEvent{1, 2, 5, 4, 7}); len(got) != 1 || !slices.Equal(judgeOrder([]soakEvent{1, 2, 5}), nil) {
		t.Errorf("order: %v", got)
	}
}
