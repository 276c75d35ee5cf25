package gateway

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
)

// TestEventNamesAreBounded: names come from outside, and must not fill the
// memory of this server or of Prometheus.
func TestEventNamesAreBounded(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := newMetrics(reg)
	for i := range 2 * maxEventNames {
		want := fmt.Sprintf("EVENT_%d", i)
		if got := m.event([]byte(want)); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	if n := testutil.CollectAndCount(m.events); n != maxEventNames+1 {
		t.Errorf("%d label values, want %d", n, maxEventNames+1)
	}
	if n := testutil.ToFloat64(m.events.WithLabelValues("other")); n != maxEventNames {
		t.Errorf("%v events under other", n)
	}
}

func TestStatusMetrics(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	reg.MustRegister(newStatusCollector(func() []ShardStatus {
		return []ShardStatus{
			{Shard: event.Shard{ID: 0, Count: 2}, State: StateConnected},
			{Shard: event.Shard{ID: 1, Count: 2}, State: StateFailed},
		}
	}))
	want := `
# HELP gatehook_gateway_shard_connected 1 if the shard is connected, otherwise 0.
# TYPE gatehook_gateway_shard_connected gauge
gatehook_gateway_shard_connected{shard="0/2"} 1
gatehook_gateway_shard_connected{shard="1/2"} 0
# HELP gatehook_gateway_shards Shards in each state.
# TYPE gatehook_gateway_shards gauge
gatehook_gateway_shards{state="connected"} 1
gatehook_gateway_shards{state="connecting"} 0
gatehook_gateway_shards{state="failed"} 1
gatehook_gateway_shards{state="identifying"} 0
gatehook_gateway_shards{state="resuming"} 0
gatehook_gateway_shards{state="standby"} 0
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

func TestMetricsLint(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := newMetrics(reg)
	m.event([]byte("READY"))
	m.dropped.WithLabelValues("odd").Inc()
	m.reconnects.WithLabelValues("op7").Inc()
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) != 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

// TestScrape: the metrics count what the gateway does.
func TestScrape(t *testing.T) {
	t.Parallel()
	withClock(t, discordtest.Config{SessionStart: discordtest.SessionStart{Total: 1000, Remaining: 700, ResetAfter: time.Hour}}, func(r *clockRig) {
		r.start()
		r.ready(0)
		r.dispatch(0, 0, 10)
		r.messages(10)
		r.count(discordtest.Heartbeat, 0, 2)
		r.do(0, discordtest.Reconnect())
		r.named("SHARD_RESUME", 1)
		shown := r.scrape()
		for _, want := range []string{
			`gatehook_gateway_events_total{event="MESSAGE_CREATE"} 10`, `gatehook_gateway_heartbeats_total 2`,
			`gatehook_gateway_identifies_total 1`, `gatehook_gateway_resumes_total 1`, `gatehook_gateway_reconnects_total{reason="op7"} 1`,
			`gatehook_gateway_session_starts_left 700`, `gatehook_gateway_shard_connected{shard="0/1"} 1`,
			`gatehook_gateway_shards{state="connected"} 1`, `gatehook_gateway_heartbeat_seconds_count 2`,
			"gatehook_gateway_received_bytes_total", "gatehook_gateway_inflated_bytes_total",
		} {
			if !strings.Contains(shown, want) {
				r.t.Errorf("%s is not shown:\n%s", want, shown)
			}
		}
	})
}
