package main

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// withFewest adds to a URL that the server gets the fewest connections that it can work
// with: one for each purpose.
func withFewest(url string) string {
	if strings.Contains(url, "?") {
		return url + "&pool_max_conns=5"
	}
	return url + "?pool_max_conns=5"
}

// listenerID returns the id of the only listener.
func (p *process) listenerID() string {
	p.t.Helper()
	list := decode[struct{ Data []struct{ ID string } }](p.t, p, http.MethodGet, "/listeners", "", http.StatusOK)
	if len(list.Data) != 1 {
		p.t.Fatalf("%d listeners are registered", len(list.Data))
	}
	return list.Data[0].ID
}

// With one connection for each purpose everything works: nothing that holds a connection
// waits for another one of its purpose.
func TestOneConnectionForEachPurpose(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+withFewest(postgrestest.URL(t)))
	p.start()
	awaitReady(t, discord)
	l := newLedger(t)
	l.callback(p, "MESSAGE_CREATE")
	id := p.listenerID()
	flow(t, discord, l, 200, nil)

	// All of these at once, several times.
	since := time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
	calls := []struct {
		method, path, body string
		also               int // an answer besides a success that is right as well
	}{
		{http.MethodPost, "/listeners/" + id + "/replay", `{"since":"` + since + `"}`, http.StatusServiceUnavailable},
		{http.MethodPost, "/listeners/" + id + "/retry", `{"status":["exhausted"],"since":"` + since + `"}`, http.StatusServiceUnavailable},
		{http.MethodPatch, "/listeners/" + id, `{"max_in_flight":4}`, 0},
		{http.MethodPost, "/listeners/" + id + "/test", ``, 0},
		{http.MethodGet, "/listeners/" + id + "/deliveries", ``, 0},
		{http.MethodGet, "/listeners", ``, 0},
		{http.MethodGet, "/shards", ``, 0},
		{http.MethodGet, "/signing-keys", ``, 0},
		{http.MethodPost, "/signing-keys/rotate", ``, 0},
		{http.MethodGet, "/metrics", ``, http.StatusServiceUnavailable},
		{http.MethodGet, "/readyz", ``, 0},
	}
	var calling sync.WaitGroup
	for range 5 {
		for _, c := range calls {
			calling.Go(func() {
				status, answer, err := p.try(c.method, c.path, c.body)
				if err != nil || status >= 300 && status != c.also {
					t.Errorf("%s %s: %d %s (%v)", c.method, c.path, status, answer, err)
				}
			})
		}
	}
	flow(t, discord, l, 200, nil)
	calling.Wait()
	l.await(time.Minute)
	p.drain()
}

// While all calls of the API wait for a lock that somebody else has, events are stored
// and delivered, the lease is kept, and everybody learns that the server is ready.
func TestStuckCallsHoldUpNoEvent(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	url := postgrestest.URL(t)
	p := newProcess(t, discord, "DATABASE_URL="+url)
	p.start()
	awaitReady(t, discord)
	l := newLedger(t)
	l.callback(p, "MESSAGE_CREATE")
	id := p.listenerID()
	flow(t, discord, l, 50, nil)
	l.await(time.Minute)

	connect := func() *pgx.Conn {
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	other, looking := connect(), connect() // a transaction sees pg_stat_activity as it was
	defer other.Close(t.Context())         //nolint:errcheck // nothing is lost with it
	defer looking.Close(t.Context())       //nolint:errcheck // nothing is lost with it
	tx, err := other.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `LOCK TABLE listeners_version IN EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	var calling sync.WaitGroup
	stop := make(chan struct{})
	end := sync.OnceFunc(func() {
		close(stop)
		if err := tx.Rollback(t.Context()); err != nil {
			t.Error(err)
		}
		calling.Wait()
	})
	defer end()
	for i := range 30 {
		calling.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				// Whether it is answered at all is not the question here.
				_, _, _ = p.try(http.MethodPatch, "/listeners/"+id, fmt.Sprintf(`{"max_in_flight":%d}`, i%4+2))
			}
		})
	}
	eventually(t, time.Minute, "stuck", func() (bool, string) {
		var n int
		if err := looking.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n >= 3, fmt.Sprint(n, " calls wait for the lock")
	})
	begin := time.Now()
	flow(t, discord, l, 500, nil)
	l.await(30 * time.Second)
	t.Logf("500 events took %v", time.Since(begin))
	for range 20 {
		if status, body := p.get("/readyz"); status != http.StatusOK {
			t.Errorf("/readyz: %d %s", status, body)
		}
	}
	if strings.Contains(p.output(), "instance heartbeat failed") {
		t.Error("a heartbeat failed")
	}
	end()
	p.drain()
}

// counting counts how often the metrics are gathered.
type counting struct {
	prometheus.Collector

	times int
}

func (c *counting) Collect(to chan<- prometheus.Metric) {
	c.times++
	c.Collector.Collect(to)
}

// However many ask for the metrics, they are gathered once a second.
func TestMetricsAreGatheredOnceASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &counting{Collector: prometheus.NewGauge(prometheus.GaugeOpts{Name: "gatehook_test"})}
		registry := prometheus.NewRegistry()
		registry.MustRegister(c)
		s := &snapshot{of: registry}
		for second := range 3 {
			var asking sync.WaitGroup
			for range 1000 {
				asking.Go(func() {
					if families, err := s.Gather(); err != nil || len(families) != 1 {
						t.Errorf("%d metrics, %v", len(families), err)
					}
				})
			}
			asking.Wait()
			if c.times != second+1 {
				t.Errorf("gathered %d times in second %d", c.times, second)
			}
			time.Sleep(snapshotAge)
		}
	})
}
