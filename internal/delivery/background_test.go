package delivery

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/event"
)

// Events that are received while thousands of deliveries are replayed overtake them.
func TestLiveEventsOvertakeAReplay(t *testing.T) {
	t.Parallel()
	const replayed, live = 10_000, 60
	var gate sync.RWMutex // locked: the callback does not answer
	c := newReceiver(t, func(call) (int, http.Header) {
		gate.RLock()
		defer gate.RUnlock()
		return http.StatusNoContent, nil
	})
	b := setup(t, Config{}, c.URL)
	b.commit(t, replayed, 1, 1)
	b.exec(t, `DELETE FROM batches`)
	b.exec(t, `INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at, asked, background)
		SELECT batch_id, ordinal, 1, 0, now(), true, true FROM events`)
	fresh := b.commit(t, live, 1, 1)
	b.wake()
	c.await(t, 300) // the replay is well under way, and the lane holds about two hundred
	gate.Lock()
	c.mu.Lock()
	before := len(c.calls)
	c.mu.Unlock()
	b.deliver(t, fresh)
	gate.Unlock()
	<-b.settled // all fresh events are delivered
	c.mu.Lock()
	calls := c.calls
	c.mu.Unlock()
	isLive := map[string]bool{}
	for i := range fresh.Events {
		isLive[ID{fresh.Events[i].Key, 1}.String()] = true
	}
	first := slices.IndexFunc(calls, func(got call) bool { return isLive[got.id] })
	between := 0
	// An answer may be noted late, so the last four, as many as may be in flight, don't
	// count.
	for i, seen := first, 0; seen < live-4; i++ {
		if isLive[calls[i].id] {
			seen++
		} else {
			between++
		}
	}
	t.Logf("%d replayed deliveries were received before the first live event, %d between live events", first-before, between)
	if first-before > 8 { // those that were in flight
		t.Errorf("%d replayed deliveries were received before the first live event", first-before)
	}
	if between > live/(backgroundShare-1)+8 {
		t.Errorf("%d replayed deliveries were received between the %d live events", between, live)
	}
	if len(calls) > replayed {
		t.Error("no replayed delivery was left to overtake")
	}
}

// Deliveries in the database don't wait behind a replay either, and the replay does not
// wait forever.
func TestBackgroundGoesLastButContinues(t *testing.T) {
	t.Parallel()
	var q queue
	add := func(n int, j job) {
		for range n {
			q.push(j)
		}
	}
	add(3, job{stored: &event.Stored{}, background: true})
	add(20, job{stored: &event.Stored{}})
	add(1, job{stored: &event.Stored{Event: event.Event{Name: interaction}}})
	order := ""
	for q.len() > 0 {
		switch j := q.pop(); {
		case j.background:
			order += "b"
		case j.stored.Name == interaction:
			order += "i"
		default:
			order += "u"
		}
	}
	if diff := cmp.Diff("iuuuuuuubuuuuuuubuuuuuub", order); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}

	c := newReceiver(t, func(call) (int, http.Header) { return http.StatusOK, nil })
	b := setup(t, Config{}, c.URL)
	b.stop()
	b.commit(t, 40, 1, 1)
	b.exec(t, `INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at, background)
		SELECT batch_id, ordinal, 1, 0, now() - interval '1 h', ordinal < 20 FROM events`)
	jobs, _, err := b.claim(t.Context(), []room{{1, 30, 5}}, 1000)
	background := 0
	for _, j := range jobs {
		if j.background {
			background++
		}
	}
	if err != nil || len(jobs) != 25 || background != 5 {
		t.Errorf("%d rows were claimed, %d of them background (%v); want 25, 5", len(jobs), background, err)
	}
}

// A claim reads few more rows than it takes, however many rows wait, and whatever the
// planner knows about them or knew when it made its plan.
func TestClaimReadsWhatItTakes(t *testing.T) {
	t.Parallel()
	const waiting, taken, keys = 20_000, 100, 300
	b := setup(t, Config{})
	b.stop()
	fill := func(listeners string, rows, ordered int) { // one row in `ordered` has an ordering key
		b.exec(t, fmt.Sprintf(`INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at, order_key, background)
			SELECT i, 0, l, 0, now() - interval '1 minute', CASE WHEN i %% %d = 0 THEN 'c' || i %% %d ELSE '' END, i %% 3 = 1
			FROM generate_series(1, %d) AS i, (VALUES %s) AS v (l)`, ordered, keys, rows, listeners))
	}
	conn := b.keepsPlans(t)
	kinds := map[string]string{"ordered": dueOfKeys, "usual": dueOf("NOT q.background"), "background": dueOf("q.background")}
	claims := func(listener int64, statements string) {
		for name := range kinds {
			plan, scans, read := explain(t, conn, fmt.Sprintf(`EXECUTE %s_%s('{%d}', '{%d}', 1, %d)`, name, statements, listener, taken, 2*taken))
			if read > 4*taken+keys+10 {
				t.Errorf("listener %d, %s, %s: %v rows were read to claim %d, by %v\n%s", listener, name, statements, read, taken, scans, plan)
			}
		}
	}
	prepare := func(statements string, listener int64) {
		for name, due := range kinds {
			if _, err := conn.Exec(t.Context(), fmt.Sprintf(`PREPARE %s_%s (bigint[], int[], bigint, bigint) AS %s`, name, statements, claimOf(due))); err != nil {
				t.Fatal(err)
			}
		}
		claims(listener, statements)
	}
	prepare("empty", 1)
	fill(`(1)`, 10, 1)
	prepare("small", 1)
	fill(`(2), (3)`, waiting, 3)
	fill(`(4)`, waiting, 1)
	prepare("unknown", 2) // the planner has no statistics yet
	all := []string{"empty", "small", "unknown"}
	for listener := range int64(4) {
		for _, statements := range all {
			claims(listener+1, statements)
		}
	}
	b.exec(t, `ANALYZE retries`) // all plans are made anew
	for listener := range int64(4) {
		claims(listener+1, "unknown")
	}
	fill(`(5)`, waiting, 1)
	claims(5, "unknown") // the statistics have no such listener
}

// keepsPlans returns a connection with the settings of a claim's transaction. On it,
// each statement keeps the plan of its first use.
func (b *bundle) keepsPlans(t *testing.T) *pgx.Conn {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), b.pool.Config().ConnConfig)
	if err == nil {
		t.Cleanup(func() { conn.Close(context.WithoutCancel(t.Context())) }) //nolint:errcheck // the database is dropped next
		_, err = conn.Exec(t.Context(), strings.ReplaceAll(byIndex, "true", "false")+`, set_config('plan_cache_mode', 'force_generic_plan', false)`)
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// Settling rows that were taken up, or putting them back, reads only these rows.
func TestSettlingReadsWhatItChanges(t *testing.T) {
	t.Parallel()
	const waiting, taken = 20_000, 100
	b := setup(t, Config{})
	b.stop()
	conn := b.keepsPlans(t)
	statements := map[string]string{"remove": removeRows, "put_back": putBackRows}
	parameters := map[string]string{
		"remove": `bigint[], int[], bigint[], bigint`, "put_back": `bigint[], int[], bigint[], bigint, text[], int[], timestamptz[]`,
	}
	settle := func(prefix string, first int) {
		for name := range statements {
			each := func(value string) string {
				return `'{` + strings.Join(slices.Repeat([]string{value}, taken), ",") + `}'`
			}
			var batches []string
			for i := range taken {
				batches = append(batches, strconv.Itoa(first+i))
			}
			args := []string{`'{` + strings.Join(batches, ",") + `}'`, each("0"), each("1"), "7"}
			if name == "put_back" {
				args = append(args, each("pending"), each("1"), each("2026-01-01"))
			}
			first += taken
			plan, scans, read := explain(t, conn, `EXECUTE `+prefix+name+`(`+strings.Join(args, ",")+`)`)
			if read > taken || first > taken && read == 0 {
				t.Errorf("%s%s: %v rows were read to change %d, by %v\n%s", prefix, name, read, taken, scans, plan)
			}
		}
	}
	prepare := func(prefix string) {
		for name, statement := range statements {
			if _, err := conn.Exec(t.Context(), fmt.Sprintf(`PREPARE %s%s (%s) AS %s`, prefix, name, parameters[name], statement)); err != nil {
				t.Fatal(err)
			}
		}
		settle(prefix, -2*taken) // no such rows exist
	}
	fill := func(first, rows int) {
		b.exec(t, fmt.Sprintf(`INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at, owner)
			SELECT i, 0, l, 0, now(), 7 FROM generate_series(%d, %d) AS i, (VALUES (1), (2)) AS v (l)`, first, first+rows-1))
	}
	prepare("empty_")
	fill(1, 10)
	prepare("small_")
	fill(1000, waiting)
	prepare("unknown_")
	settle("empty_", 2000)
	settle("small_", 3000)
	settle("unknown_", 4000)
	b.exec(t, `ANALYZE retries`)
	settle("unknown_", 5000)
}

// All lanes together claim a limited number of rows, however much room they have.
func TestClaimIsLimited(t *testing.T) {
	t.Parallel()
	b := setup(t, Config{})
	b.stop()
	b.exec(t, `INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at, order_key, background)
		SELECT i, 0, l, 0, now() - interval '1 minute', CASE WHEN i % 3 = 0 THEN 'c' || i ELSE '' END, i % 3 = 1
		FROM generate_series(1, 60) AS i, generate_series(1, 3) AS l`)
	rooms := []room{{1, 50, 50}, {2, 50, 50}, {3, 50, 50}}
	for _, most := range []int{7, 63, 60} { // the last two continue with the next kind of rows
		jobs, keys, err := b.claim(t.Context(), rooms, most)
		if err != nil || len(jobs) != most || len(keys) != most {
			t.Errorf("%d rows were claimed (%v), want %d", len(jobs), err, most)
		}
	}
	if n := b.count(t, `SELECT count(*) FROM retries WHERE owner = 1`); n != 7+63+60 {
		t.Errorf("%d rows are claimed", n)
	}
}

// Only a record that somebody waits for is urgent. During a drain there is none, so
// many are written at once.
func TestUrgentRecords(t *testing.T) {
	t.Parallel()
	stored, of := &event.Stored{}, &batch{}
	for name, tt := range map[string]struct {
		rec  record
		want bool
	}{
		"close":             {record{}, true},
		"flush":             {record{mark: make(chan struct{})}, true},
		"nothing to do":     {record{settle: of}, false},
		"received":          {record{job: job{stored: stored, batch: of}}, false},
		"received in order": {record{job: job{stored: stored, batch: of, orderKey: "1"}}, false},
		"taken up":          {record{job: job{stored: stored}}, false},
		"taken up in order": {record{job: job{stored: stored, orderKey: "1"}}, true},
	} {
		if got := tt.rec.urgent(); got != tt.want {
			t.Errorf("%s: urgent is %t", name, got)
		}
	}
}

// Statements sent together are one transaction: byIndex applies to those after it, and
// to no later ones on the connection.
func TestByIndexEndsWithItsTransaction(t *testing.T) {
	t.Parallel()
	b := setup(t, Config{})
	conn, err := b.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	const settings = `SELECT array_to_string(array[current_setting('enable_sort'), current_setting('enable_seqscan'),
		current_setting('enable_bitmapscan'), current_setting('jit')], ' ')`
	var before, within, after string
	if err := conn.QueryRow(t.Context(), settings).Scan(&before); err != nil {
		t.Fatal(err)
	}
	var together pgx.Batch
	together.Queue(byIndex)
	together.Queue(settings)
	results := conn.SendBatch(t.Context(), &together)
	_, err = results.Exec()
	err = errors.Join(err, results.QueryRow().Scan(&within), results.Close(),
		conn.QueryRow(t.Context(), settings).Scan(&after))
	if err != nil || within != "off off off off" || after != before {
		t.Errorf("before %s, within %s, after %s (%v)", before, within, after, err)
	}
}
