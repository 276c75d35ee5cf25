package gateway

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gatehook/gatehook/internal/event"
)

// State is what a shard is doing.
type State string

// The states of a shard.
const (
	// StateStandby: this instance does not run the shard.
	StateStandby State = "standby"
	// StateConnecting: there is no session yet.
	StateConnecting State = "connecting"
	// StateIdentifying: connected, and waiting for permission to IDENTIFY or for
	// READY.
	StateIdentifying State = "identifying"
	// StateResuming: there is a session, but no connection that resumed it yet.
	StateResuming State = "resuming"
	// StateConnected: events arrive.
	StateConnected State = "connected"
	// StateFailed: a person has to act; Problem says how.
	StateFailed State = "failed"
)

// states are all states.
var states = []State{StateStandby, StateConnecting, StateIdentifying, StateResuming, StateConnected, StateFailed}

// Role is what a shard does with its events, in words for people.
type Role string

// The roles.
const (
	RoleDelivering Role = "delivering"
	// RoleWarming and RoleHolding: another set of shards still delivers.
	RoleWarming Role = "warming"
	RoleHolding Role = "holding"
	// RoleLeaving: the session is read to its end.
	RoleLeaving Role = "leaving"
)

// roleOf returns the role of a shard with this duty.
func roleOf(d duty) Role {
	switch d {
	case dutyWarm:
		return RoleWarming
	case dutyHold:
		return RoleHolding
	case dutyLeave:
		return RoleLeaving
	default:
		return RoleDelivering
	}
}

// ShardStatus is how a shard is doing.
type ShardStatus struct {
	Shard event.Shard
	State State
	Role  Role
	// Problem says in one line what is wrong and what to do; "" for no problem.
	Problem string
	// SessionSince is when this process began the session or first resumed it;
	// zero if it did neither.
	SessionSince time.Time
	// ConnectedSince is when READY or RESUMED came; zero while not connected.
	ConnectedSince time.Time
	// Intents are those of the session.
	Intents event.Intents
	// Received and Stored are sequence numbers of the session.
	Received, Stored int64
	// AckedAt is when Discord last acknowledged a heartbeat. Latency is how long
	// the acknowledgement took.
	AckedAt time.Time
	Latency time.Duration
	// LastClose is the end of the last connection.
	LastClose Close
	// Identifies and Resumes count what this process sent for the shard.
	Identifies, Resumes int64
}

// Close is how a connection ended.
type Close struct {
	At time.Time // zero for never
	// Code is the WebSocket close code that Discord or this side sent, or 1006 if
	// neither sent one.
	Code   int
	Reason string
}

// unready returns why the shard is not ready, or "". A shard that is resuming is
// ready, because Discord replays what it misses, as long as Discord may have its
// session. One that is warming is never unready, unless it failed: another set
// delivers.
func (s ShardStatus) unready(now time.Time) string {
	switch {
	case s.Role == RoleWarming && s.State != StateFailed:
		return ""
	case s.State == StateConnected, s.Problem == "" && (s.State == StateStandby || s.State == StateResuming),
		s.State == StateResuming && now.Sub(s.LastClose.At) < sessionKept:
		return ""
	case s.Problem != "":
		return fmt.Sprintf("shard %v: %s: %s", s.Shard, s.State, s.Problem)
	default:
		return fmt.Sprintf("shard %v: %s", s.Shard, s.State)
	}
}

// statusCollector collects the shards' states when Prometheus asks.
type statusCollector struct {
	status func() []ShardStatus
	shards *prometheus.Desc
	up     *prometheus.Desc
}

func newStatusCollector(status func() []ShardStatus) *statusCollector {
	return &statusCollector{
		status: status,
		shards: prometheus.NewDesc("gatehook_gateway_shards", "Shards in each state.", []string{"state"}, nil),
		up:     prometheus.NewDesc("gatehook_gateway_shard_connected", "1 if the shard is connected, otherwise 0.", []string{"shard"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *statusCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.shards
	ch <- c.up
}

// Collect implements prometheus.Collector.
func (c *statusCollector) Collect(ch chan<- prometheus.Metric) {
	count := make(map[State]int)
	for _, s := range c.status() {
		count[s.State]++
		up := 0.0
		if s.State == StateConnected {
			up = 1
		}
		ch <- prometheus.MustNewConstMetric(c.up, prometheus.GaugeValue, up, s.Shard.String())
	}
	for _, state := range states {
		ch <- prometheus.MustNewConstMetric(c.shards, prometheus.GaugeValue, float64(count[state]), string(state))
	}
}
