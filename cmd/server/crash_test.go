package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// TestKilledInTheMiddleOfAChange: a server that is killed while it replays,
// rotates a secret or a signing key, or disables a listener leaves all of it or
// nothing; and the same call works afterwards.
func TestKilledInTheMiddleOfAChange(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	database := postgrestest.URL(t)
	p := newProcess(t, discord, "DATABASE_URL="+database)
	p.start()
	awaitReady(t, discord)
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context()) //nolint:errcheck // nothing is lost with it
	count := func(query string) (n int) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), query).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}

	callback := newSwitchable(t)
	start := time.Now().Add(-time.Second).UTC()
	created := decode[struct{ ID string }](t, p, "POST", "/listeners", fmt.Sprintf(`{"event":"MESSAGE_CREATE","url":%q}`, callback.URL), http.StatusCreated)
	const events = 40
	for i := range events {
		if _, err := discord.Dispatch(0, "MESSAGE_CREATE", fmt.Appendf(nil, `{"id":"%d","channel_id":"2","author":{"id":"3"}}`, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, time.Minute, "delivered and recorded, all of them", func() (bool, string) {
		n := count(`SELECT count(*) FROM attempts WHERE delivered`)
		return n == events, fmt.Sprint(n)
	})

	path := "/listeners/" + created.ID
	asked := `SELECT count(*) FROM retries`
	for _, tt := range []struct {
		name, method, path, body string
		// hold keeps the change from its last statement, before which it has
		// written all the rest.
		hold string
		// state is one number before the change and another after it.
		state         string
		before, after int
	}{
		{
			"rotate a secret", "POST", path + "/rotate-secret", "", `SELECT FROM listeners_version FOR UPDATE`,
			`SELECT count(*) + 10 * count(expires_at) FROM listener_secrets`, 1, 12,
		},
		{
			"rotate a signing key", "POST", "/signing-keys/rotate", "", `LOCK TABLE signing_keys IN ROW EXCLUSIVE MODE`,
			`SELECT count(*) FROM signing_keys`, 1, 2,
		},
		{
			"replay", "POST", path + "/replay", fmt.Sprintf(`{"since":%q}`, start.Format(time.RFC3339Nano)),
			// The last row of those that the replay adds.
			`INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at)
				SELECT batch_id, ordinal, listener_id, 0, now() FROM attempts ORDER BY batch_id DESC, ordinal DESC LIMIT 1`,
			asked, 0, 0,
		},
		{
			"disable", "PATCH", path, `{"enabled":false}`, `SELECT FROM listeners_version FOR UPDATE`,
			`SELECT count(*) FROM listeners WHERE NOT enabled AND disabled_at IS NOT NULL AND disabled_reason = 'manual'`, 0, 1,
		},
	} {
		if got := count(tt.state); got != tt.before {
			t.Fatalf("%s: before it the state is %d, want %d", tt.name, got, tt.before)
		}
		came := len(callback.ids())
		holder, err := pgx.Connect(t.Context(), database)
		if err != nil {
			t.Fatal(err)
		}
		tx, err := holder.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), tt.hold); err != nil {
			t.Fatal(err)
		}
		answered := make(chan string, 1)
		go func() {
			status, answer, err := p.try(tt.method, tt.path, tt.body)
			answered <- fmt.Sprint(status, answer, err)
		}()
		eventually(t, time.Minute, "waiting for what is held", func() (bool, string) {
			n := count(fmt.Sprintf(`SELECT count(*) FROM pg_stat_activity WHERE %d = ANY(pg_blocking_pids(pid))`, holder.PgConn().PID()))
			return n > 0, fmt.Sprint(n)
		})
		p.stop(syscall.SIGKILL)
		<-answered
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := holder.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		// What was killed may have run on to its commit, which never came.
		eventually(t, time.Minute, "gone from the database", func() (bool, string) {
			n := count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'`)
			return n == 0, fmt.Sprint(n)
		})
		if got := count(tt.state); got != tt.before {
			t.Errorf("%s: killed in its middle the state is %d, want %d", tt.name, got, tt.before)
		}
		if n := len(callback.ids()); n != came {
			t.Errorf("%s: %d deliveries came of what was never committed", tt.name, n-came)
		}

		// Once more, and killed as soon as it is answered.
		p.start()
		status, answer := p.call(tt.method, tt.path, tt.body)
		p.stop(syscall.SIGKILL)
		if status >= 300 {
			t.Fatalf("%s: %d %s", tt.name, status, answer)
		}
		p.start()
		if tt.name == "replay" {
			var replayed struct{ Queued int }
			if err := json.Unmarshal([]byte(answer), &replayed); err != nil || replayed.Queued != events {
				t.Errorf("queued %s, %v", answer, err)
			}
			eventually(t, time.Minute, "replayed, all of them", func() (bool, string) {
				again := map[string]bool{}
				for _, id := range callback.ids()[came:] {
					again[id] = true
				}
				return len(again) == events && count(asked) == 0, fmt.Sprint(len(again), " came")
			})
		} else if got := count(tt.state); got != tt.after {
			t.Errorf("%s: killed after its answer the state is %d, want %d", tt.name, got, tt.after)
		}
		if out := p.output(); strings.Contains(out, "panic") {
			t.Errorf("%s: %s", tt.name, p.lastLines(20))
		}
	}
}
