package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/openapi"
	"github.com/gatehook/gatehook/internal/secret"
)

// caller is a rig that also serves the API calls, with a real database.
type caller struct {
	*rig
	pool     *pgxpool.Pool
	commands *Commands
	handler  http.Handler
	stop     func()
}

// calls implements only this package's part of the API; the tests make no other
// calls.
type calls struct {
	*Handler
	*Commands
	rest
}

type rest struct{ openapi.StrictServerInterface }

func newCaller(t *testing.T, cfg discordtest.Config, pool *pgxpool.Pool) *caller {
	t.Helper()
	r := newRig(t, cfg)
	r.cfg.Relay = NewRelay(pool)
	return &caller{rig: r, pool: pool}
}

// beside makes another instance with the same Discord, database and journal.
func (c *caller) beside() *caller {
	other := &rig{
		Server: c.Server, t: c.t, ctx: c.ctx, store: c.store, cfg: c.cfg, slots: c.slots, timing: c.timing,
		changed: make(chan struct{}, 1), log: c.log,
	}
	other.cfg.Relay, other.cfg.IntentsChanged = NewRelay(c.pool), other.changed
	return &caller{rig: other, pool: c.pool}
}

// start runs the Gateway and its commands.
func (c *caller) start() {
	c.t.Helper()
	stopGateway := c.rig.start()
	c.commands = NewCommands(c.gateway, quiet)
	c.commands.interval = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(c.ctx)
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.commands.Run(ctx); err != nil {
			c.t.Errorf("Run: %v", err)
		}
	})
	var err error
	c.handler, err = openapi.NewHandler(calls{Handler: c.gateway.Handler(), Commands: c.commands},
		openapi.Options{APIKey: secret.New("gk_test"), Logger: quiet})
	if err != nil {
		c.t.Fatal(err)
	}
	c.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		stopGateway()
	})
	c.t.Cleanup(c.stop)
}

type reply struct {
	status int
	header http.Header
	body   []byte
}

// problem returns the detail and the field of a problem document.
func (r reply) problem(t *testing.T) (detail, field string) {
	t.Helper()
	var p openapi.Problem
	if got := r.header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type %q of %s", got, r.body)
	}
	if err := json.Unmarshal(r.body, &p); err != nil {
		t.Fatal(err)
	}
	return p.Detail, given(p.Field)
}

func (c *caller) call(method, path, body string) reply {
	c.t.Helper()
	req := httptest.NewRequestWithContext(c.ctx, method, path, strings.NewReader(body))
	req.Header.Set("Authorization", "Bearer gk_test")
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	c.handler.ServeHTTP(w, req)
	b, err := io.ReadAll(w.Result().Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return reply{w.Code, w.Result().Header, bytes.TrimSpace(b)}
}

// want makes a call and fails the test unless it gets this answer.
func (c *caller) want(method, path, body string, status int, answer string) {
	c.t.Helper()
	r := c.call(method, path, body)
	if r.status != status || answer != "" && string(r.body) != answer {
		c.t.Fatalf("%s %s %s: %d %s, want %d %s", method, path, body, r.status, r.body, status, answer)
	}
}

// refused makes a call and fails the test unless the answer is a problem whose
// detail contains text.
func (c *caller) refused(method, path, body string, status int, text string) reply {
	c.t.Helper()
	r := c.call(method, path, body)
	if r.status != status {
		c.t.Fatalf("%s %s %s: %d %s, want %d", method, path, body, r.status, r.body, status)
	}
	if detail, _ := r.problem(c.t); !strings.Contains(detail, text) {
		c.t.Errorf("%s %s: %q does not contain %q", method, path, detail, text)
	}
	return r
}

// retryable fails the test unless the answer says when to try again.
func (r reply) retryable(t *testing.T) {
	t.Helper()
	if n, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || n < 1 {
		t.Errorf("Retry-After %q", r.header.Get("Retry-After"))
	}
}

// ready waits until a shard of this instance is in service.
func (c *caller) ready(shard int) discordtest.Session {
	c.t.Helper()
	session := c.rig.ready(shard)
	c.store.wait(c.ctx, c.t, "READY", func(events []*event.Event) bool {
		return slices.ContainsFunc(events, func(e *event.Event) bool { return e.Name == "READY" && e.Shard.ID == shard })
	})
	return session
}

// inService returns the shards of this instance that commands can go to.
func (c *caller) inService() (list []event.Shard) {
	for _, s := range c.gateway.owned() {
		if s.liveLink() != nil {
			list = append(list, s.id)
		}
	}
	return list
}

// polled returns once the instance has looked for commands after the call.
func (c *caller) polled() {
	for range 3 { // the second token waits until a poll begins, the third until it ends
		c.commands.poll <- struct{}{}
	}
}

// command waits for the n-th command of a shard and compares it.
func (c *caller) command(shard, n, op int, d string) {
	c.t.Helper()
	e := c.count(discordtest.Command, shard, n)
	if e.Op != op {
		c.t.Errorf("command %d has op %d, want %d", n, e.Op, op)
	}
	if diff := cmp.Diff(d, string(e.Data)); diff != "" {
		c.t.Errorf("command %d: %s", n, diff)
	}
}

// guildOn returns a guild of a shard.
func guildOn(shard event.Shard) event.Snowflake { return event.Snowflake(shard.Count+shard.ID)<<22 | 7 }
