package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/openapi"
	"github.com/gatehook/gatehook/internal/postgres"
)

// pollInterval is how often an instance looks for commands from other
// instances.
const pollInterval = 500 * time.Millisecond

// Commands serves the API calls that send a command over a gateway connection,
// for code that has no such connection. A command goes straight to the shard's
// connection if this process runs the shard, and through the database if
// another one does. Make it with NewCommands, then Run it; its calls are safe
// for concurrent use.
type Commands struct {
	gateway  *Gateway
	relay    *Relay
	log      *slog.Logger
	interval time.Duration
	poll     chan struct{} // holds a token when Run should look at once
}

// NewCommands returns the calls for this gateway, whose Config has a Relay.
func NewCommands(g *Gateway, log *slog.Logger) *Commands {
	return &Commands{gateway: g, relay: g.cfg.Relay, log: log, interval: pollInterval, poll: make(chan struct{}, 1)}
}

// Run performs the commands of other instances, and keeps the presence up to
// date on every connection, until ctx ends.
func (c *Commands) Run(ctx context.Context) error {
	tick := time.NewTicker(c.interval)
	defer tick.Stop()
	var sending sync.WaitGroup
	defer sending.Wait()
	var known presence
	var swept time.Time
	failed := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-c.poll:
		}
		applicationID, _ := c.gateway.commandTarget()
		if applicationID == 0 {
			continue
		}
		now := time.Now()
		taken, latest, err := c.relay.take(ctx, applicationID, c.gateway.owned(), known)
		if err == nil && now.Sub(swept) >= commandRetention {
			swept, err = now, c.relay.sweep(ctx)
		}
		if err != nil && !failed && ctx.Err() == nil {
			c.log.LogAttrs(ctx, slog.LevelWarn, "could not look for commands of other servers, trying again", slog.Any("error", err))
		}
		failed = err != nil
		known = latest
		c.sendPresence(ctx, known, now, &sending)
		for _, r := range taken {
			sending.Go(func() { c.doRelayed(ctx, r) })
		}
	}
}

// doRelayed performs a command of another instance and answers it.
func (c *Commands) doRelayed(ctx context.Context, r relayed) {
	result := &commandError{outcome: outcomeDone}
	if s := c.gateway.find(r.shard); s == nil {
		result = &commandError{
			outcome: outcomeUnconnected, retryAfter: retryUnconnected,
			detail: fmt.Sprintf("shard %v is moving to another server: try again", r.shard),
		}
	} else if err := c.perform(ctx, s, r.op, r.d); err != nil {
		result = err
	}
	if err := c.relay.answer(context.WithoutCancel(ctx), r.id, result); err != nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "could not answer a command of another server", slog.Any("error", err))
	}
}

// deliverGuild sends a command to the shard of a guild, and returns that shard.
func (c *Commands) deliverGuild(ctx context.Context, guild event.Snowflake, op int, d any) (event.Shard, error) {
	_, count := c.gateway.commandTarget()
	if count == 0 {
		return event.Shard{}, c.notKnownYet()
	}
	b, err := json.Marshal(d)
	if err != nil {
		return event.Shard{}, fmt.Errorf("encode op %d: %w", op, err)
	}
	_, err = discord.Encode(op, json.RawMessage(b))
	if tooLarge, ok := errors.AsType[*discord.SizeError](err); ok {
		return event.Shard{}, openapi.FieldError("body", tooLarge.Error())
	}
	if err != nil {
		return event.Shard{}, fmt.Errorf("encode op %d: %w", op, err)
	}
	shard := discord.ShardOf(guild, count)
	return shard, c.deliver(ctx, shard, op, b)
}

// deliver sends a command to a shard, whichever instance runs it.
func (c *Commands) deliver(ctx context.Context, shard event.Shard, op int, d json.RawMessage) error {
	if s := c.gateway.find(shard); s != nil && s.tenure.Load() != nil {
		if err := c.perform(ctx, s, op, d); err != nil {
			return c.apiError(ctx, err)
		}
		return nil
	}
	applicationID, _ := c.gateway.commandTarget()
	err := c.relay.ask(ctx, applicationID, shard, op, d)
	if refused, ok := errors.AsType[*commandError](err); ok && refused.outcome == outcomeUnanswered {
		c.gateway.metrics.commands.WithLabelValues(commandName(op), string(outcomeUnanswered)).Inc()
	}
	return c.apiError(ctx, err)
}

const (
	// retryUnconnected is the Retry-After for a shard that has no connection.
	retryUnconnected = 2 * time.Second
	// retryFailed is the Retry-After for a shard that waits for a person to act.
	retryFailed = time.Minute
)

// commandName returns the name of a command in metrics.
func commandName(op int) string {
	switch op {
	case discord.OpPresence:
		return "presence"
	case discord.OpVoiceState:
		return "voice_state"
	case discord.OpMembers:
		return "members"
	default:
		return "restart"
	}
}

// perform performs a command on a shard of this process. It returns nil once
// that is done.
func (c *Commands) perform(ctx context.Context, s *shard, op int, d json.RawMessage) *commandError {
	if op == discord.OpReconnect {
		s.restart()
		return c.counted(op, nil)
	}
	r := s.liveLink()
	if r == nil {
		return c.counted(op, unconnected(s.snapshot()))
	}
	if missing := needs(op, d) &^ event.Intents(r.sessionIntents.Load()); missing != 0 {
		return c.counted(op, &commandError{
			outcome: outcomeIntents,
			detail: fmt.Sprintf("the session of shard %v lacks the intent %v: switch it on in the developer portal "+
				"(Bot, Privileged Gateway Intents), and register a listener that needs it or set GATEHOOK_INTENTS", s.id, missing),
		})
	}
	return c.send(ctx, r, op, d)
}

// send sends a command over one connection of a shard, within its limits.
func (c *Commands) send(ctx context.Context, r *running, op int, d json.RawMessage) *commandError {
	err := r.conn.Command(ctx, op, d)
	if limit, ok := errors.AsType[*discord.LimitError](err); ok {
		return c.counted(op, &commandError{
			outcome: outcomeLimited, retryAfter: limit.Wait,
			detail: fmt.Sprintf("shard %v: %v, except for the %d that are kept for heartbeats: try again in %v",
				r.shard.id, limit, discord.SendRoom, limit.Wait.Round(time.Millisecond)),
		})
	}
	if err != nil {
		return c.counted(op, &commandError{
			outcome: outcomeUnconnected, retryAfter: retryUnconnected,
			detail: fmt.Sprintf("the connection of shard %v broke while the command was sent: try again", r.shard.id),
		})
	}
	return c.counted(op, nil)
}

// counted counts the result of a command, and returns it.
func (c *Commands) counted(op int, result *commandError) *commandError {
	outcome := outcomeDone
	if result != nil {
		outcome = result.outcome
	}
	c.gateway.metrics.commands.WithLabelValues(commandName(op), string(outcome)).Inc()
	return result
}

// unconnected returns the error for a shard that has no live link.
func unconnected(st ShardStatus) *commandError {
	e := &commandError{outcome: outcomeUnconnected, retryAfter: retryUnconnected}
	switch st.State {
	case StateFailed:
		e.retryAfter = retryFailed
		e.detail = fmt.Sprintf("shard %v has failed: %s; then POST /shards/%d/restart", st.Shard, st.Problem, st.Shard.ID)
	case StateConnected:
		e.detail = fmt.Sprintf("shard %v is replacing its connection: try again", st.Shard)
	default:
		e.detail = fmt.Sprintf("shard %v is %s, not connected: try again when GET /shards says so", st.Shard, st.State)
	}
	return e
}

// apiError turns an error into the answer to a call.
func (c *Commands) apiError(ctx context.Context, err error) error {
	switch refused, ok := errors.AsType[*commandError](err); {
	case ok:
		return &openapi.Error{Status: refused.status(), Detail: refused.detail, RetryAfter: refused.retryAfter}
	case err != nil && postgres.Unavailable(err):
		c.log.LogAttrs(ctx, slog.LevelWarn, "could not hand over a command to another server", slog.Any("error", err))
		return openapi.Unavailable()
	default:
		return err
	}
}

// notKnownYet returns the answer to a call before the shards are known.
func (c *Commands) notKnownYet() error {
	e := &openapi.Error{
		Status: http.StatusServiceUnavailable, RetryAfter: retryUnconnected,
		Detail: "the shards are not known yet: try again",
	}
	if reasons := c.gateway.Unready(); len(reasons) > 0 {
		e.Detail, e.Reasons = "the shards are not known yet: "+reasons[0], reasons
	}
	return e
}

// apiShard returns a shard as the API shows it.
func apiShard(s event.Shard) openapi.ShardOfCount { return openapi.ShardOfCount{s.ID, s.Count} }

// outcome is how a command ended.
type outcome string

const (
	outcomeDone        outcome = "done"
	outcomeUnconnected outcome = "not_connected"
	outcomeLimited     outcome = "limited"
	outcomeIntents     outcome = "intents_missing"
	outcomeUnanswered  outcome = "unanswered"
)

// commandError is why a command did not reach Discord. One instance sends it to
// another as the answer to a relayed command.
type commandError struct {
	outcome    outcome
	detail     string
	retryAfter time.Duration
}

// Error implements error.
func (e *commandError) Error() string { return e.detail }

// status returns the HTTP status.
func (e *commandError) status() int {
	switch e.outcome {
	case outcomeLimited:
		return http.StatusTooManyRequests
	case outcomeIntents:
		return http.StatusConflict
	default:
		return http.StatusServiceUnavailable
	}
}

// given returns the value of an optional field, or the zero value.
func given[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
