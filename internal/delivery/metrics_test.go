package delivery

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/event"
)

// scrape returns what GET /metrics shows, each series with its value.
func (b *bundle) scrape(t *testing.T) map[string]string {
	t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(b.metrics, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}).
		ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", http.NoBody))
	if w.Code != http.StatusOK {
		t.Fatal(w.Body)
	}
	shown := map[string]string{}
	for line := range strings.Lines(w.Body.String()) {
		if series, value, ok := strings.Cut(strings.TrimSpace(line), "} "); ok {
			shown[strings.TrimPrefix(series, "gatehook_delivery_")+"}"] = value
		}
	}
	return shown
}

// nonzero returns the series that contain a text and are not zero, without buckets and
// sums.
func nonzero(shown map[string]string, text string) map[string]string {
	found := map[string]string{}
	for series, value := range shown {
		if strings.Contains(series, text) && value != "0" && !strings.Contains(series, "_bucket") && !strings.Contains(series, "_sum") {
			found[series] = value
		}
	}
	return found
}

// Logs show the host of a callback, and nothing that may be secret.
func TestHostOf(t *testing.T) {
	t.Parallel()
	for _, rest := range []string{"", "/", "/hunter2", "?token=hunter2", "#hunter2", "/a?token=hunter2"} {
		if got := hostOf(&event.Listener{URL: "https://example.com:8443" + rest}); got != "example.com:8443" {
			t.Errorf("%s: %s", rest, got)
		}
	}
}

// Every attempt and every final state is counted for its listener.
func TestMetricsByListener(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	all := newReceiver(t, func(c call) (int, http.Header) {
		switch statuses := []int{204, 204, 302, 404, 429, 500, 503, 0}; statuses[c.seq%1024] {
		case 0:
			<-hold
			return 204, nil
		default:
			return statuses[c.seq%1024], nil
		}
	})
	t.Cleanup(func() { close(hold) })
	gone := newReceiver(t, func(call) (int, http.Header) { return http.StatusGone, nil })
	b := setup(t, Config{Schedule: Schedule{}, AttemptTimeout: 2 * time.Second}, all.URL, "http://10.1.2.3/", gone.URL)
	b.registry.change(1, func(l *event.Listener) { l.MaxInFlight = 1 })
	b.deliver(t, b.commit(t, 8, 1, 1, 2))
	b.deliver(t, b.commit(t, 1, 1, 3))
	<-b.settled
	<-b.settled
	b.stop()
	shown := b.scrape(t)
	want := map[string]string{
		`attempts_total{class="2xx",listener="lst_1"}`:     "2",
		`attempts_total{class="3xx",listener="lst_1"}`:     "1",
		`attempts_total{class="4xx",listener="lst_1"}`:     "1",
		`attempts_total{class="429",listener="lst_1"}`:     "1",
		`attempts_total{class="5xx",listener="lst_1"}`:     "2",
		`attempts_total{class="timeout",listener="lst_1"}`: "1",

		`deliveries_total{listener="lst_1",state="delivered"}`: "2",
		`deliveries_total{listener="lst_1",state="exhausted"}`: "6",
		`first_attempt_delay_seconds_count{listener="lst_1"}`:  "8",
		`success_delay_seconds_count{listener="lst_1"}`:        "2",
	}
	if diff := cmp.Diff(want, nonzero(shown, `listener="lst_1"`)); diff != "" {
		t.Error(diff)
	}
	want = map[string]string{
		`attempts_total{class="refused",listener="lst_2"}`:     "8",
		`deliveries_total{listener="lst_2",state="exhausted"}`: "8",
		`first_attempt_delay_seconds_count{listener="lst_2"}`:  "8",
	}
	if diff := cmp.Diff(want, nonzero(shown, `listener="lst_2"`)); diff != "" {
		t.Error(diff)
	}
	want = map[string]string{
		`attempts_total{class="4xx",listener="lst_3"}`:        "1",
		`deliveries_total{listener="lst_3",state="gone"}`:     "1",
		`first_attempt_delay_seconds_count{listener="lst_3"}`: "1",
	}
	if diff := cmp.Diff(want, nonzero(shown, `listener="lst_3"`)); diff != "" {
		t.Error(diff)
	}
}

// Some listeners have their own series; the others share one set. The series of a
// deleted listener are removed, which makes room for another listener's.
func TestSeriesAreBounded(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, ok)
	urls := slices.Repeat([]string{c.URL}, maxSeries+3)
	b := setup(t, Config{}, urls...)
	var ids []int64
	for id := range int64(len(urls)) {
		ids = append(ids, id+1)
	}
	late := ids[len(ids)-1]
	b.deliver(t, b.commit(t, 1, 1, ids[:len(ids)-1]...))
	<-b.settled
	if err := b.recorder.flush(t.Context()); err != nil { // they are counted once they are stored
		t.Fatal(err)
	}
	labels := func() map[string]bool {
		found := map[string]bool{}
		for series := range b.scrape(t) {
			if _, rest, ok := strings.Cut(series, `listener="`); ok {
				label, _, _ := strings.Cut(rest, `"`)
				found[label] = true
			}
		}
		return found
	}
	own := labels()
	if len(own) != maxSeries+1 || !own[otherListeners] {
		t.Fatalf("%d labels, want %d and %q", len(own), maxSeries, otherListeners)
	}
	if got := b.scrape(t)[`deliveries_total{listener="other",state="delivered"}`]; got != "2" {
		t.Errorf("the other listeners have %s deliveries, want 2", got)
	}
	b.registry.remove(1)
	eventually(t, "the series of the deleted listener are removed", func() bool { return !labels()[event.ListenerID(1)] })
	b.deliver(t, b.commit(t, 1, 1, late))
	<-b.settled
	if now := labels(); len(now) != maxSeries+1 || !now[event.ListenerID(late)] {
		t.Errorf("%d labels after one listener replaced another, want %d; the new one has its own: %v", len(now), maxSeries+1, now[event.ListenerID(late)])
	}
	b.stop()
}

// The metrics show the deliveries that wait in memory and in the database.
func TestBacklogIsShown(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	began := make(chan struct{}, 1)
	c := newReceiver(t, func(call) (int, http.Header) {
		select {
		case began <- struct{}{}:
		default:
		}
		<-hold
		return http.StatusNoContent, nil
	})
	release := sync.OnceFunc(func() { close(hold) })
	t.Cleanup(release)
	b := setup(t, Config{}, c.URL, c.URL)
	b.registry.change(1, func(l *event.Listener) { l.MaxInFlight = 1 })
	b.wait(t, 2, time.Now().Add(-time.Hour), 3, time.Hour)
	b.lane(2)
	b.deliver(t, b.commit(t, 5, 1, 1))
	<-began
	shown := b.scrape(t)
	for series, want := range map[string]string{
		`queued{listener="lst_1"}`: "5", `in_flight{listener="lst_1"}`: "1", `retries_due{listener="lst_1"}`: "0",
		`queued{listener="lst_2"}`: "0", `in_flight{listener="lst_2"}`: "0", `retries_due{listener="lst_2"}`: "0",
		`queued{listener="other"}`: "0", `oldest_seconds{listener="other"}`: "0",
	} {
		if shown[series] != want {
			t.Errorf("%s: %s, want %s", series, shown[series], want)
		}
	}
	if age, err := strconv.ParseFloat(shown[`oldest_seconds{listener="lst_1"}`], 64); err != nil || age <= 0 || age > 600 {
		t.Errorf("the oldest event in memory has an age of %v s, %v", age, err)
	}
	if age, err := strconv.ParseFloat(shown[`oldest_seconds{listener="lst_2"}`], 64); err != nil || age < 3599 || age > 4200 {
		t.Errorf("the oldest event in the database has an age of %v s, %v, want an hour", age, err)
	}
	release()
	b.stop()
}

// wait puts some deliveries of a listener into retries, the first one exhausted.
func (b *bundle) wait(t *testing.T, listener int64, stored time.Time, n int, due time.Duration) {
	t.Helper()
	if _, err := b.pool.Exec(t.Context(), `INSERT INTO retries (batch_id, ordinal, listener_id, state, attempt, due_at)
		SELECT $1::bigint + i, 0, $2, CASE WHEN i = 0 THEN 'exhausted' ELSE 'pending' END, 1, now() + $4::interval FROM generate_series(0, $3) AS i`,
		stored.UnixMicro(), listener, n, due); err != nil {
		t.Fatal(err)
	}
}

// Due deliveries are counted for enabled listeners only, and read at most once every
// few seconds, however often there is a scrape.
func TestBacklogIsSampled(t *testing.T) {
	t.Parallel()
	b := setup(t, Config{}, "https://one.example/", "https://two.example/")
	b.registry.change(2, func(l *event.Listener) { l.Enabled = false })
	b.stop() // so that nobody takes up the rows
	hourAgo := time.Now().Add(-time.Hour)
	b.wait(t, 1, hourAgo, 20, time.Hour)
	b.wait(t, 1, hourAgo.Add(time.Minute), 5, -time.Minute)
	b.wait(t, 2, hourAgo, 5, -time.Minute)
	collector := &lanesCollector{d: b.Delivery}
	waiting := collector.sample(t.Context())
	want := map[int64]backlog{1: {due: 5, oldest: time.UnixMicro(hourAgo.UnixMicro() + 1)}}
	if diff := cmp.Diff(want, waiting, cmp.AllowUnexported(backlog{})); diff != "" {
		t.Error(diff)
	}
	if _, err := b.pool.Exec(t.Context(), `DELETE FROM retries`); err != nil {
		t.Fatal(err)
	}
	if again := collector.sample(t.Context()); len(again) != 1 {
		t.Error("the database was read twice")
	}
	collector.next = time.Time{}
	if later := collector.sample(t.Context()); len(later) != 0 {
		t.Errorf("a new sample still has %v", later)
	}
}

// A sample reads only limited parts of indexes, however many rows there are.
func TestBacklogReadsIndexesOnly(t *testing.T) {
	t.Parallel()
	b := setup(t, Config{})
	b.stop()
	if _, err := b.pool.Exec(t.Context(), `INSERT INTO retries (batch_id, ordinal, listener_id, state, attempt, due_at)
		SELECT i, 0, i % 5, CASE WHEN i % 3 = 0 THEN 'exhausted' ELSE 'pending' END, 1, now() - interval '1 minute'
		FROM generate_series(1, 200000) AS i`); err != nil {
		t.Fatal(err)
	}
	if _, err := b.pool.Exec(t.Context(), `VACUUM ANALYZE retries`); err != nil {
		t.Fatal(err)
	}
	plan, kinds, read := explain(t, b.pool, backlogQuery, maxDue)
	if most := float64(5*maxDue + 50); read == 0 || read > most || len(kinds) != 1 || kinds["Index Only Scan"] == 0 {
		t.Errorf("%v rows were read, want at most %v, by %v\n%s", read, most, kinds, plan)
	}
}

// explain runs a query and returns how many rows of retries and attempts it read, and
// by which kinds of scans.
func explain(t *testing.T, db interface {
	QueryRow(ctx context.Context, query string, args ...any) pgx.Row
}, query string, args ...any,
) (plan []byte, kinds map[string]int, read float64) {
	t.Helper()
	if err := db.QueryRow(t.Context(), `EXPLAIN (ANALYZE, FORMAT JSON) `+query, args...).Scan(&plan); err != nil {
		t.Fatal(err)
	}
	var root any
	if err := json.Unmarshal(plan, &root); err != nil {
		t.Fatal(err)
	}
	kinds = make(map[string]int)
	walk(root, func(node map[string]any) {
		kind, _ := node["Node Type"].(string)
		table, _ := node["Relation Name"].(string)
		if strings.Contains(kind, "Scan") && (table == "retries" || strings.HasPrefix(table, "attempts")) {
			rows, _ := node["Actual Rows"].(float64)
			loops, _ := node["Actual Loops"].(float64)
			removed, _ := node["Rows Removed by Filter"].(float64)
			read += (rows + removed) * loops
			kinds[kind]++
		}
	})
	return plan, kinds, read
}

// walk calls f for every object in a JSON value.
func walk(v any, f func(map[string]any)) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			walk(e, f)
		}
	case map[string]any:
		f(v)
		for _, e := range v {
			walk(e, f)
		}
	}
}

// Counting an attempt needs no allocation and no lookup of labels.
func BenchmarkCountAttempt(b *testing.B) {
	s := newMetrics(prometheus.NewRegistry(), &Delivery{}).open(1)
	rec := &record{
		attempted: true, startedAt: time.Now(), result: callback.Result{Class: callback.Class2xx, Duration: time.Millisecond},
		job: job{stored: &event.Stored{Event: event.Event{ReceivedAt: time.Now()}}},
	}
	b.ReportAllocs()
	for b.Loop() {
		s.countAttempt(rec)
	}
}

// eventually checks a condition repeatedly until it holds.
func eventually(t *testing.T, condition string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(60 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("never true: %s", condition)
		}
	}
}
