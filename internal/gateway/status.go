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
	// StateStandby: another instance has the shard, or it is not known yet.
	StateStandby State = "standby"
	// StateConnecting: there is no session yet.
	StateConnecting State = "connecting"
	// StateIdentifying: connected, waiting for its turn to IDENTIFY or for
	// READY.
	StateIdentifying State = "identifying"
	// StateResuming: the connection was lost and the session was not.
	StateResuming State = "resuming"
	// StateConnected: events arrive.
	StateConnected State = "connected"
	// StateFailed: a person has to change something; Problem says what.
	StateFailed State = "failed"
)

// states are all of them.
var states = []State{StateStandby, StateConnecting, StateIdentifying, StateResuming, StateConnected, StateFailed}

// Role is what a shard's events are for.
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

// roleOf says what the duty of a set makes of its shards.
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

// ShardStatus tells how a shard is doing.
type ShardStatus struct {
	Shard event.Shard
	State State
	Role  Role
	// Problem says in one line what is wrong and what to do; "" for nothing.
	Problem string
	// SessionSince is when this process began the session, or first resumed
	// it; zero for neither.
	SessionSince time.Time
	// ConnectedSince is when READY or RESUMED came; zero while not connected.
	ConnectedSince time.Time
	// Intents are those of the session.
	Intents event.Intents
	// Received and Stored are sequence numbers of the session.
	Received, Stored int64
	// AckedAt is when the last heartbeat was acknowledged, Latency how long
	// after it was sent.
	AckedAt time.Time
	Latency time.Duration
	// LastClose is how the last connection ended.
	LastClose Close
	// Identifies and Resumes count those sent by this process.
	Identifies, Resumes int64
}

// Close tells how a connection ended.
type Close struct {
	At time.Time // zero for never
	// Code is the WebSocket close code: Discord's, or this side's, or 1006
	// where there was none.
	Code   int
	Reason string
}

// unready tells why the shard is not ready, or "". One of a set that does not
// deliver yet takes nothing away.
func (s ShardStatus) unready() string {
	switch {
	case s.Role == RoleWarming && s.State != StateFailed:
		return ""
	case s.State == StateStandby && s.Problem == "", s.State == StateConnected, s.State == StateResuming:
		return ""
	case s.Problem != "":
		return fmt.Sprintf("shard %v: %s: %s", s.Shard, s.State, s.Problem)
	default:
		return fmt.Sprintf("shard %v: %s", s.Shard, s.State)
	}
}

// statusCollector gives the shards' states to Prometheus when it asks.
type statusCollector struct {
	status func() []ShardStatus
	shards *prometheus.Desc
	up     *prometheus.Desc
}

func newStatusCollector(status func() []ShardStatus) *statusCollector {
	return &statusCollector{
		status: status,
		shards: prometheus.NewDesc("gatehook_gateway_shards", "Shards in each state.", []string{"state"}, nil),
		up:     prometheus.NewDesc("gatehook_gateway_shard_connected", "1 for a shard that is connected.", []string{"shard"}, nil),
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
