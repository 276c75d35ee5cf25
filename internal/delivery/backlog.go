package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	// sampleEvery is the age at which a scrape replaces a sample of the database. Slow
	// samples are kept longer, so that sampling uses at most 1/sampleShare of the time.
	sampleEvery = 5 * time.Second
	sampleShare = 20
	// sampleTimeout bounds a sample, and so how long a scrape waits for it.
	sampleTimeout = 2 * time.Second
	// maxDue bounds the count of one listener's due retries, because counting millions
	// would take seconds.
	maxDue = 10_000
)

// lanesCollector collects, at each scrape, metrics of the deliveries that wait in the
// lanes and in the database.
type lanesCollector struct {
	d *Delivery

	mu      sync.Mutex // guards the fields below
	waiting map[int64]backlog
	next    time.Time
}

// backlog is the deliveries of one listener that wait in the database.
type backlog struct {
	due    int       // at most maxDue
	oldest time.Time // when the oldest event was stored; zero for none
}

// gauges are the values of all gauges for one label.
type gauges struct {
	queued, inFlight, due int
	oldest                time.Time
}

func (g *gauges) add(queued, inFlight int, oldest time.Time, waits backlog) {
	g.queued += queued
	g.inFlight += inFlight
	g.due += waits.due
	g.oldest = earlierIgnoringZero(g.oldest, earlierIgnoringZero(oldest, waits.oldest))
}

// earlierIgnoringZero returns the earlier of two times, or the other one if one is zero.
func earlierIgnoringZero(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

var laneGauges = [...]*prometheus.Desc{
	laneGauge("queued", "Deliveries that the lanes hold in memory, including those in flight."),
	laneGauge("in_flight", "POSTs in flight."),
	laneGauge("retries_due", "Deliveries that wait in the database and are due now, counted up to 10000 per listener."),
	laneGauge("oldest_seconds", "Age of the oldest event that waits for a delivery, in memory or in the database."),
}

func laneGauge(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName("gatehook", "delivery", name), help, []string{"listener"}, nil)
}

// Describe implements prometheus.Collector.
func (c *lanesCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range laneGauges {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c *lanesCollector) Collect(to chan<- prometheus.Metric) {
	waiting := c.sample(c.d.working)
	lanes := c.d.all()
	all := map[string]*gauges{otherListeners: {}}
	for _, l := range lanes {
		label := l.series.Load().label
		g := all[label]
		if g == nil {
			g = &gauges{}
			all[label] = g
		}
		queued, inFlight, oldest := l.load()
		g.add(queued, inFlight, oldest, waiting[l.id])
	}
	now := c.d.now()
	for label, g := range all {
		age := 0.0
		if !g.oldest.IsZero() {
			age = max(0, now.Sub(g.oldest).Seconds())
		}
		for i, v := range [...]float64{float64(g.queued), float64(g.inFlight), float64(g.due), age} {
			to <- prometheus.MustNewConstMetric(laneGauges[i], prometheus.GaugeValue, v, label)
		}
	}
}

// sample returns the deliveries that wait in the database, as of now or of the last
// sample.
func (c *lanesCollector) sample(ctx context.Context) map[int64]backlog {
	c.mu.Lock()
	defer c.mu.Unlock()
	begin := time.Now()
	if begin.Before(c.next) {
		return c.waiting
	}
	ctx, cancel := context.WithTimeoutCause(ctx, sampleTimeout, errors.New("reading the waiting deliveries took too long"))
	defer cancel()
	waiting, err := c.d.backlogs(ctx)
	switch {
	case err == nil:
		c.waiting = waiting
	case !c.d.stopping.Load():
		c.d.metrics.sampleFailures.Inc()
		c.d.log.LogAttrs(ctx, slog.LevelWarn, "could not read the waiting deliveries, metrics show old values", slog.Any("error", err))
	}
	c.next = begin.Add(max(sampleEvery, sampleShare*time.Since(begin)))
	return c.waiting
}

// backlogs reads the deliveries that wait in the database for enabled listeners. It
// reads only indexes, hops from listener to listener, and counts at most maxDue due
// retries per listener.
func (d *Delivery) backlogs(ctx context.Context) (map[int64]backlog, error) {
	rows, _ := d.pool.Query(ctx, backlogQuery, maxDue)
	found := make(map[int64]backlog)
	var (
		id     int64
		due    int
		oldest int64
	)
	if _, err := pgx.ForEachRow(rows, []any{&id, &due, &oldest}, func() error {
		if l := d.listeners.Listener(id); l != nil && l.Enabled {
			found[id] = backlog{due, d.store.Committed(oldest)}
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read the waiting deliveries: %w", err)
	}
	return found, nil
}

// backlogQuery makes the planner use the indexes on due_at and the index
// retries_oldest. If the last subquery compared listener_id = l.listener_id, the
// planner would walk the primary key instead, past all final rows.
const backlogQuery = withPending + `SELECT listener_id,
		(SELECT count(*) FROM (
			(SELECT FROM retries r WHERE r.listener_id = l.listener_id AND r.state = 'pending' AND r.order_key <> ''
				AND r.due_at <= now() ORDER BY r.due_at LIMIT $1)
			UNION ALL
			(SELECT FROM retries r WHERE r.listener_id = l.listener_id AND r.state = 'pending' AND r.order_key = '' AND NOT r.background
				AND r.due_at <= now() ORDER BY r.due_at LIMIT $1)
			UNION ALL
			(SELECT FROM retries r WHERE r.listener_id = l.listener_id AND r.state = 'pending' AND r.order_key = '' AND r.background
				AND r.due_at <= now() ORDER BY r.due_at LIMIT $1)
			LIMIT $1) AS due),
		(SELECT r.batch_id FROM retries r WHERE r.state = 'pending' AND (r.listener_id, r.batch_id) >= (l.listener_id, 0)
			ORDER BY r.listener_id, r.batch_id LIMIT 1)
	FROM l WHERE listener_id IS NOT NULL`
