package main

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// verdict compares what was sent with what came.
type verdict struct {
	// open is how many events are missing and not told as lost, counted for
	// each callback: they may still come.
	open int
	// sessions is how many of them belong to each session.
	sessions map[string]int
	// wrong is what no waiting will mend.
	wrong []string
	// lost is how many events are missing and told, of sessions that Discord
	// ended.
	lost int
}

// judge excuses a missing event only if a GATEHOOK_SESSION_LOST names its
// session and a place before it, and Discord ended that session; or if the
// session was begun between those two that the GATEHOOK_SESSION_LOST names, by
// a client that died before it could store that it has it.
func judge(l *ledger, sessions []discordtest.Session, died func(client string) bool) (v verdict) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v.sessions = map[string]int{}
	byID := map[string]int{}
	for i, s := range sessions {
		byID[s.ID] = i
	}
	came := sync.OnceValue(func() map[string]bool { // sessions of which anything came
		came := map[string]bool{}
		for _, arrivals := range l.came {
			for id := range arrivals {
				came[l.expected[id].Session] = true
			}
		}
		return came
	})
	for _, told := range l.losses {
		i, ok := byID[told.Session]
		switch next, known := byID[told.Next]; {
		case !ok || !known || sessions[i].Shard != told.Shard || sessions[next].Shard != told.Shard || next <= i || told.NextSeq != 1:
			v.wrong = append(v.wrong, fmt.Sprintf("a loss is told that can't be: %+v", told))
		case sessions[i].Ended == "" || sessions[i].ByClient:
			v.wrong = append(v.wrong, fmt.Sprintf("shard %d: session %s was given up, ended %q", told.Shard, told.Session, sessions[i].Ended))
		}
	}
	excused := func(s sent) bool {
		i := byID[s.Session]
		session := sessions[i]
		return slices.ContainsFunc(l.losses, func(told loss) bool {
			if told.Session == s.Session {
				return s.Seq > told.After && session.Ended != "" && !session.ByClient
			}
			return told.Shard == s.shard && byID[told.Session] < i && i < byID[told.Next] && died(session.Client) && !came()[session.ID]
		})
	}
	for callback, arrivals := range l.came {
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

// An event that is missing is excused by nothing but a loss that was told of a
// session that Discord ended, or that nobody could know of.
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
	told := loss{Session: "first", After: 5, Next: "last", NextSeq: 1}
	tests := []struct {
		name              string
		sessions          []discordtest.Session
		losses            []loss
		missing           discordtest.Sent
		came              string // another event of this session came
		open, wrong, lost int
	}{
		{name: "not told", sessions: sessions(byDiscord, false), missing: discordtest.Sent{Session: "first", Seq: 6}, open: 1},
		{name: "told", sessions: sessions(byDiscord, false), losses: []loss{told}, missing: discordtest.Sent{Session: "first", Seq: 6}, lost: 1},
		{name: "before what is told", sessions: sessions(byDiscord, false), losses: []loss{told}, missing: discordtest.Sent{Session: "first", Seq: 5}, open: 1},
		{name: "behind what is told", sessions: sessions(byDiscord, false), losses: []loss{told}, missing: discordtest.Sent{Session: "last", Seq: 2}, open: 1},
		{name: "of another shard", sessions: sessions(byDiscord, false), losses: []loss{told}, missing: discordtest.Sent{Session: "elsewhere", Seq: 6}, open: 1},
		{name: "given up by the client", sessions: sessions("", false), losses: []loss{told}, missing: discordtest.Sent{Session: "first", Seq: 6}, open: 1, wrong: 1},
		{name: "ended by the client", sessions: sessions("the client closed with 1000", true), losses: []loss{told}, missing: discordtest.Sent{Session: "first", Seq: 6}, open: 1, wrong: 1},
		{name: "between, of a killed client", sessions: sessions(byDiscord, false, "dead"), losses: []loss{told}, missing: discordtest.Sent{Session: "orphan of dead", Seq: 2}, lost: 1},
		{name: "between, of a client that lives", sessions: sessions(byDiscord, false, "a"), losses: []loss{told}, missing: discordtest.Sent{Session: "orphan of a", Seq: 2}, open: 1},
		{name: "between, and stored", sessions: sessions(byDiscord, false, "dead"), losses: []loss{told}, missing: discordtest.Sent{Session: "orphan of dead", Seq: 2}, came: "orphan of dead", open: 1},
		{name: "a session that is not known", sessions: sessions(byDiscord, false), losses: []loss{{Session: "none", Next: "last", NextSeq: 1}}, missing: discordtest.Sent{Session: "last", Seq: 2}, open: 1, wrong: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLedger(t)
			l.losses = tt.losses
			shard := slices.IndexFunc(tt.sessions, func(s discordtest.Session) bool { return s.ID == tt.missing.Session })
			l.expected["missing"] = sent{tt.sessions[shard].Shard, tt.missing}
			l.expected["came"] = sent{0, discordtest.Sent{Session: tt.came}}
			l.came["RAW_*"] = map[string]*arrival{"came": {times: 1, ids: 1}}
			v := judge(l, tt.sessions, func(client string) bool { return client == "dead" })
			if v.open != tt.open || len(v.wrong) != tt.wrong || v.lost != tt.lost {
				t.Errorf("%+v", v)
			}
		})
	}
}
