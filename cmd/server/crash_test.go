package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// TestKilledInTheMiddleOfAChange kills a server while it replays, rotates a
// secret or a signing key, or disables a listener. It checks that the change is
// made completely or not at all, and that the same call works afterwards.
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
	eventually(t, time.Minute, "all delivered and recorded", func() (bool, string) {
		n := count(`SELECT count(*) FROM attempts WHERE delivered`)
		return n == events, fmt.Sprint(n)
	})

	path := "/listeners/" + created.ID
	retries := `SELECT count(*) FROM retries`
	for _, tt := range []struct {
		name, method, path, body string
		// hold blocks the last statement of the change, after all others.
		hold string
		// state returns the number before, and after the change the number after.
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
			// The last row that the replay adds.
			`INSERT INTO retries (batch_id, ordinal, listener_id, attempt, due_at)
				SELECT batch_id, ordinal, listener_id, 0, now() FROM attempts ORDER BY batch_id DESC, ordinal DESC LIMIT 1`,
			retries, 0, 0,
		},
		{
			"disable", "PATCH", path, `{"enabled":false}`, `SELECT FROM listeners_version FOR UPDATE`,
			`SELECT count(*) FROM listeners WHERE NOT enabled AND disabled_at IS NOT NULL AND disabled_reason = 'manual'`, 0, 1,
		},
	} {
		if got := count(tt.state); got != tt.before {
			t.Fatalf("%s: the state before it is %d, want %d", tt.name, got, tt.before)
		}
		arrived := len(callback.ids())
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
		eventually(t, time.Minute, "blocked", func() (bool, string) {
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
		// PostgreSQL may still run the statement of the killed server, but no
		// COMMIT follows.
		eventually(t, time.Minute, "gone from the database", func() (bool, string) {
			n := count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'`)
			return n == 0, fmt.Sprint(n)
		})
		if got := count(tt.state); got != tt.before {
			t.Errorf("%s: the state after a kill in the middle is %d, want %d", tt.name, got, tt.before)
		}
		if n := len(callback.ids()); n != arrived {
			t.Errorf("%s: %d deliveries of an uncommitted change arrived", tt.name, n-arrived)
		}

		// The same call once more; the server is killed once it has answered.
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
			eventually(t, time.Minute, "all replayed", func() (bool, string) {
				again := map[string]bool{}
				for _, id := range callback.ids()[arrived:] {
					again[id] = true
				}
				return len(again) == events && count(retries) == 0, fmt.Sprint(len(again), " arrived")
			})
		} else if got := count(tt.state); got != tt.after {
			t.Errorf("%s: the state after a kill after the answer is %d, want %d", tt.name, got, tt.after)
		}
		if out := p.output(); strings.Contains(out, "panic") {
			t.Errorf("%s: the server panicked: %s", tt.name, p.lastLines(20))
		}
	}
}

// TestKilledWhileDisabling kills a server while it disables a listener whose
// callback is gone or has failed for days. It checks that the listener is either
// disabled, which is reported once, or disabled when the same happens again, and
// that nothing is lost.
func TestKilledWhileDisabling(t *testing.T) {
	t.Parallel()
	for reason, status := range map[string]int{"gone": http.StatusGone, "failing": http.StatusInternalServerError} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			discord := startDiscord(t)
			database := postgrestest.URL(t)
			p := newProcess(t, discord, "DATABASE_URL="+database)
			p.start()
			awaitReady(t, discord)
			c := newPrompted(t)
			operator := newSwitchable(t)
			created := decode[struct{ ID string }](t, p, "POST", "/listeners", fmt.Sprintf(`{"event":"MESSAGE_CREATE","url":%q}`, c.URL), http.StatusCreated)
			p.call("POST", "/listeners", fmt.Sprintf(`{"event":"GATEHOOK_LISTENER_DISABLED","url":%q}`, operator.URL))
			conn, err := pgx.Connect(t.Context(), database)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(t.Context()) //nolint:errcheck // nothing is lost with it
			if reason == "failing" {
				p.drain()
				if _, err := conn.Exec(t.Context(), `INSERT INTO listener_health SELECT id, now() - interval '6 days' FROM listeners WHERE url = $1`, c.URL); err != nil {
					t.Fatal(err)
				}
				p.start()
			}
			expect := func(when string, disabled, reported int) {
				t.Helper()
				var got [2]int
				if err := conn.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM listeners WHERE NOT enabled AND disabled_reason = $1),
					(SELECT count(*) FROM events WHERE name = 'GATEHOOK_LISTENER_DISABLED')`, reason).Scan(&got[0], &got[1]); err != nil {
					t.Fatal(err)
				}
				if got != [2]int{disabled, reported} {
					t.Fatalf("%s: %d listeners are disabled and %d events report it, want %d and %d", when, got[0], got[1], disabled, reported)
				}
			}
			// kill answers the POST, and kills the server while it waits for the lock.
			kill := func(lock string) {
				t.Helper()
				holder, err := pgx.Connect(t.Context(), database)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := holder.Exec(t.Context(), `BEGIN; `+lock); err != nil {
					t.Fatal(err)
				}
				c.answers <- status
				eventually(t, time.Minute, "waiting for the lock", func() (waits bool, _ string) {
					err := conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid)))`,
						holder.PgConn().PID()).Scan(&waits)
					return waits, fmt.Sprint(err)
				})
				p.stop(syscall.SIGKILL)
				if err := holder.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
				// PostgreSQL may still run the statement of the killed server, but
				// no COMMIT follows.
				eventually(t, time.Minute, "gone from the database", func() (gone bool, _ string) {
					err := conn.QueryRow(t.Context(), `SELECT NOT EXISTS (SELECT FROM pg_stat_activity
						WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend')`).Scan(&gone)
					return gone, fmt.Sprint(err)
				})
			}
			if _, err := discord.Dispatch(0, "MESSAGE_CREATE", []byte(`{"id":"1","channel_id":"2","author":{"id":"3"}}`)); err != nil {
				t.Fatal(err)
			}
			id := c.await()
			kill(`SELECT FROM listeners_version FOR UPDATE`)
			expect("killed while it disables the listener", 0, 0)
			p.start()
			if again := c.await(); again != id {
				t.Errorf("delivery %s arrived, want %s again", again, id)
			}
			kill(`LOCK TABLE attempts IN SHARE MODE`)
			expect("killed before it recorded the attempt", 1, 1)
			p.start()
			eventually(t, time.Minute, "reported to the operator", func() (bool, string) {
				ids := operator.ids()
				return len(ids) > 0, fmt.Sprint(ids)
			})
			if status, answer := p.call("PATCH", "/listeners/"+created.ID, `{"enabled":true}`); status != http.StatusOK {
				t.Fatalf("enable the listener again: %d %s", status, answer)
			}
			if again := c.await(); again != id {
				t.Errorf("delivery %s arrived, want %s again", again, id)
			}
			c.answers <- http.StatusNoContent
			eventually(t, time.Minute, "delivered and recorded", func() (done bool, _ string) {
				err := conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM attempts WHERE delivered AND listener_id = (SELECT id FROM listeners WHERE url = $1))
					AND NOT EXISTS (SELECT FROM retries)`, c.URL).Scan(&done)
				return done, fmt.Sprint(err)
			})
			expect("enabled again", 0, 1)
			for _, reported := range operator.ids() {
				if reported != operator.ids()[0] {
					t.Error("two events report that the listener was disabled")
				}
			}
		})
	}
}

// prompted is a callback that answers with the statuses from a channel.
type prompted struct {
	*httptest.Server
	t       *testing.T
	arrived chan string // the webhook-ids of the POSTs
	answers chan int
}

func newPrompted(t *testing.T) *prompted {
	t.Helper()
	a := &prompted{t: t, arrived: make(chan string, 10), answers: make(chan int)}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		a.arrived <- r.Header.Get("Webhook-Id")
		select {
		case status := <-a.answers:
			w.WriteHeader(status)
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(a.Close)
	return a
}

func (a *prompted) await() string {
	a.t.Helper()
	select {
	case id := <-a.arrived:
		return id
	case <-time.After(time.Minute):
		a.t.Fatal("no delivery arrived")
		return ""
	}
}
