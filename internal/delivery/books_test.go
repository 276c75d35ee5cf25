package delivery

import (
	"testing"

	"github.com/gatehook/gatehook/internal/event"
)

// However many deliveries there are, and of whatever status the others are, a
// page is read from an index.
func TestPageReadsWhatItShows(t *testing.T) {
	t.Parallel()
	const limit = 50
	b := setup(t, Config{})
	b.stop()
	// Of one listener one in twenty failed; of the other all: the older ones are
	// exhausted, the newer ones wait.
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
				continue // would have to look at every attempt that failed; there are few while a callback is down
			}
			for _, before := range []event.Key{newest, {Batch: 15000}} {
				for _, query := range pageQueries(status) {
					plan, kinds, read := explain(t, b.pool, query, listener, before.Batch, before.Ordinal, limit)
					// Of what is delivered one in twenty is left out, each is looked
					// for in retries, and a sort reads one ahead.
					if read > 3*limit {
						t.Errorf("listener %d, %q before %v: %v rows were read, by %v\n%s", listener, status, before, read, kinds, plan)
					}
				}
			}
		}
	}
}
