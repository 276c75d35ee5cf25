package main

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// verdict compares the events sent with the deliveries received.
type verdict struct {
	// open counts the events, for each callback, that are missing and not
	// reported as lost. They may still arrive.
	open int
	// sessions splits open by callback and session.
	sessions map[string]int
	// wrong lists the errors that waiting can't correct.
	wrong []string
	// lost counts the missing events, for each callback, that are rightly
	// reported as lost.
	lost int
}

// judge excuses a missing event in two cases. Either a GATEHOOK_SESSION_LOST
// names its session and an earlier sequence number, and Discord ended that
// session. Or its session began between the two that a GATEHOOK_SESSION_LOST
// names, and its client died before it could store the session.
func judge(l *ledger, sessions []discordtest.Session, died func(client string) bool) (v verdict) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v.sessions = map[string]int{}
	byID := map[string]int{}
	for i, s := range sessions {
		byID[s.ID] = i
	}
	arrived := sync.OnceValue(func() map[string]bool { // sessions of which any event arrived
		arrived := map[string]bool{}
		for _, arrivals := range l.arrivals {
			for id := range arrivals {
				arrived[l.expected[id].Session] = true
			}
		}
		return arrived
	})
	for _, reported := range l.losses {
		i, ok := byID[reported.Session]
		switch next, known := byID[reported.Next]; {
		case !ok || !known || sessions[i].Shard != reported.Shard || sessions[next].Shard != reported.Shard || next <= i || reported.NextSeq != 1:
			v.wrong = append(v.wrong, fmt.Sprintf("an impossible loss is reported: %+v", reported))
		case sessions[i].Ended == "" || sessions[i].ByClient:
			v.wrong = append(v.wrong, fmt.Sprintf("shard %d: session %s was given up, ended %q", reported.Shard, reported.Session, sessions[i].Ended))
		}
	}
	excused := func(s sent) bool {
		i := byID[s.Session]
		session := sessions[i]
		return slices.ContainsFunc(l.losses, func(reported loss) bool {
			if reported.Session == s.Session {
				return s.Seq > reported.After && session.Ended != "" && !session.ByClient
			}
			return reported.Shard == s.shard && byID[reported.Session] < i && i < byID[reported.Next] && died(session.Client) && !arrived()[session.ID]
		})
	}
	for callback, arrivals := range l.arrivals {
		for id, s := range l.expected {
			switch {
			case arrivals[id] != nil:
			case excused(s):
				v.lost++
			default:
				v.open++
				v.sessions[callback+" of session "+s.Session]++
			}
		}
	}
	return v
}

// TestJudge checks that a missing event is excused only by the reported loss of
// a session that Discord ended, or of one that no living client knew.
func TestJudge(t *testing.T) {
	t.Parallel()
	const byDiscord = "it was invalidated with op 9"
	sessions := func(ended string, byClient bool, orphans ...string) []discordtest.Session {
		list := []discordtest.Session{{ID: "first", Client: "a", Ended: ended, ByClient: byClient}, {ID: "elsewhere", Shard: 1, Client: "a"}}
		for _, client := range orphans {
			list = append(list, discordtest.Session{ID: "orphan of " + client, Client: client})
		}
		return append(list, discordtest.Session{ID: "last", Client: "b"})
	}
	reported := loss{Session: "first", After: 5, Next: "last", NextSeq: 1}
	tests := []struct {
		name              string
		sessions          []discordtest.Session
		losses            []loss
		missing           discordtest.Sent
		arrived           string // another event of this session arrived
		open, wrong, lost int
	}{
		{name: "not reported", sessions: sessions(byDiscord, false), missing: discordtest.Sent{Session: "first", Seq: 6}, open: 1},
		{name: "reported", sessions: sessions(byDiscord, false), losses: []loss{reported}, missing: discordtest.Sent{Session: "first", Seq: 6}, lost: 1},
		{name: "before the reported loss", sessions: sessions(byDiscord, false), losses: []loss{reported}, missing: discordtest.Sent{Session: "first", Seq: 5}, open: 1},
		{name: "after the reported loss", sessions: sessions(byDiscord, false), losses: []loss{reported}, missing: discordtest.Sent{Session: "last", Seq: 2}, open: 1},
		{name: "of another shard", sessions: sessions(byDiscord, false), losses: []loss{reported}, missing: discordtest.Sent{Session: "elsewhere", Seq: 6}, open: 1},
		{name: "given up by the client", sessions: sessions("", false), losses: []loss{reported}, missing: discordtest.Sent{Session: "first", Seq: 6}, open: 1, wrong: 1},
		{name: "ended by the client", sessions: sessions("the client closed with 1000", true), losses: []loss{reported}, missing: discordtest.Sent{Session: "first", Seq: 6}, open: 1, wrong: 1},
		{name: "in between, of a killed client", sessions: sessions(byDiscord, false, "dead"), losses: []loss{reported}, missing: discordtest.Sent{Session: "orphan of dead", Seq: 2}, lost: 1},
		{name: "in between, of a living client", sessions: sessions(byDiscord, false, "a"), losses: []loss{reported}, missing: discordtest.Sent{Session: "orphan of a", Seq: 2}, open: 1},
		{name: "in between, but stored", sessions: sessions(byDiscord, false, "dead"), losses: []loss{reported}, missing: discordtest.Sent{Session: "orphan of dead", Seq: 2}, arrived: "orphan of dead", open: 1},
		{name: "of an unknown session", sessions: sessions(byDiscord, false), losses: []loss{{Session: "none", Next: "last", NextSeq: 1}}, missing: discordtest.Sent{Session: "last", Seq: 2}, open: 1, wrong: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLedger(t)
			l.losses = tt.losses
			shard := slices.IndexFunc(tt.sessions, func(s discordtest.Session) bool { return s.ID == tt.missing.Session })
			l.expected["missing"] = sent{tt.sessions[shard].Shard, tt.missing}
			l.expected["arrived"] = sent{0, discordtest.Sent{Session: tt.arrived}}
			l.arrivals["RAW_*"] = map[string]*arrival{"arrived": {times: 1, ids: 1}}
			v := judge(l, tt.sessions, func(client string) bool { return client == "dead" })
			if v.open != tt.open || len(v.wrong) != tt.wrong || v.lost != tt.lost {
				t.Errorf("%+v", v)
			}
		})
	}
}
