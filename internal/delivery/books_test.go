package delivery

import (
	"testing"

	"github.com/gatehook/gatehook/internal/event"
)

// A page is read from an index, however many deliveries there are and whatever the
// status of the others.
func TestPageReadsWhatItShows(t *testing.T) {
	t.Parallel()
	const limit = 50
	b := setup(t, Config{})
	b.stop()
	// One in twenty deliveries of the first listener failed, and all of the second: its
	// older ones are exhausted, its newer ones wait.
	b.exec(t, `INSERT INTO attempts (batch_id, ordinal, listener_id, attempt, started_at, duration_us, status, delivered, error, response)
		SELECT i, 0, l, 1, now(), 1, 200, l = 1 AND i % 20 <> 0, '', '' FROM generate_series(1, 20000) AS i, (VALUES (1), (2)) AS v (l)
		WHERE l = 1 OR i % 100 = 0`)
	b.exec(t, `INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at, state)
		SELECT i, 0, 1, 1, now(), CASE WHEN i % 400 = 0 THEN 'pending' WHEN i % 400 = 20 THEN 'expired' ELSE 'exhausted' END
		FROM generate_series(20, 20000, 20) AS i
		UNION ALL SELECT i, 0, 2, 1, now(), CASE WHEN i < 10000 THEN 'exhausted' ELSE 'pending' END FROM generate_series(1, 20000) AS i`)
	b.exec(t, `VACUUM ANALYZE attempts, retries`)
	for listener := range int64(3) {
		for _, status := range []string{"", statusPending, statusDelivered, statusExhausted, "expired", "unparsable"} {
			if listener == 2 && status == statusDelivered {
				continue // it reads every failed attempt, but there are few while a callback is down
			}
			for _, before := range []event.Key{newest, {Batch: 15000}} {
				for _, query := range pageQueries(status) {
					plan, kinds, read := explain(t, b.pool, query, listener, before.Batch, before.Ordinal, limit)
					// A page leaves out one delivery in twenty, reads the row of
					// each one in retries, and a sort reads one row ahead.
					if read > 3*limit {
						t.Errorf("listener %d, %q before %v: %v rows were read, by %v\n%s", listener, status, before, read, kinds, plan)
					}
				}
			}
		}
	}
}
