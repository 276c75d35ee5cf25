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

// pollInterval is how often an instance looks for what others want done.
const pollInterval = 500 * time.Millisecond

// Commands sends Discord what a bot sends over its gateway connections, for
// code that has none: it serves the calls for that. A command goes to the
// shard's connection at once if this process has the shard, and through the
// database if another one has it. Make it with NewCommands, then Run it; its
// calls are safe for concurrent use.
type Commands struct {
	gateway  *Gateway
	relay    *Relay
	log      *slog.Logger
	interval time.Duration
	poll     chan struct{} // holds a token when it should look at once
}

// NewCommands returns the calls for this gateway, whose Config has a Relay.
func NewCommands(g *Gateway, log *slog.Logger) *Commands {
	return &Commands{gateway: g, relay: g.cfg.Relay, log: log, interval: pollInterval, poll: make(chan struct{}, 1)}
}

// Run does what other instances want done, and keeps the presence up to date
// on every connection, until ctx ends.
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
			c.log.LogAttrs(ctx, slog.LevelWarn, "commands of other servers are not seen at the moment", slog.Any("error", err))
		}
		failed = err != nil
		known = latest
		c.sendPresence(ctx, known, now, &sending)
		for _, r := range taken {
			sending.Go(func() { c.doRelayed(ctx, r) })
		}
	}
}

// doRelayed does what another instance wants done.
func (c *Commands) doRelayed(ctx context.Context, r relayed) {
	how := &commandError{outcome: outcomeDone}
	if s := c.gateway.find(r.shard); s == nil {
		how = &commandError{
			outcome: outcomeUnconnected, retryAfter: retryUnconnected,
			detail: fmt.Sprintf("shard %v is changing its server: try again", r.shard),
		}
	} else if err := c.perform(ctx, s, r.op, r.d); err != nil {
		how = err
	}
	if err := c.relay.answer(context.WithoutCancel(ctx), r.id, how); err != nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "another server waits in vain for an answer", slog.Any("error", err))
	}
}

// deliverGuild sends a command to the shard of a guild, and returns that.
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

// deliver sends a command to a shard, wherever that is.
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
	// retryUnconnected is when a shard that has no connection may have one.
	retryUnconnected = 2 * time.Second
	// retryFailed is the same for one that waits for a person.
	retryFailed = time.Minute
)

// commandName is what metrics call a command.
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

// perform has a shard of this process do a command. It returns nil when that
// is done.
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
			detail: fmt.Sprintf("the session of shard %v is without the intent %v: switch it on in the developer portal "+
				"(Bot, Privileged Gateway Intents), and register a listener that needs it or set GATEHOOK_INTENTS", s.id, missing),
		})
	}
	return c.send(ctx, r, op, d)
}

// send sends a command over one connection of a shard.
func (c *Commands) send(ctx context.Context, r *running, op int, d json.RawMessage) *commandError {
	err := r.conn.Command(ctx, op, d)
	if limit, ok := errors.AsType[*discord.LimitError](err); ok {
		return c.counted(op, &commandError{
			outcome: outcomeLimited, retryAfter: limit.Wait,
			detail: fmt.Sprintf("shard %v: %v, but for the %d that are kept for heartbeats: try again in %v",
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

// counted counts how a command went, and returns that.
func (c *Commands) counted(op int, how *commandError) *commandError {
	outcome := outcomeDone
	if how != nil {
		outcome = how.outcome
	}
	c.gateway.metrics.commands.WithLabelValues(commandName(op), string(outcome)).Inc()
	return how
}

// unconnected says why there is no connection.
func unconnected(st ShardStatus) *commandError {
	e := &commandError{outcome: outcomeUnconnected, retryAfter: retryUnconnected}
	switch st.State {
	case StateFailed:
		e.retryAfter = retryFailed
		e.detail = fmt.Sprintf("shard %v is failed: %s; then POST /shards/%d/restart", st.Shard, st.Problem, st.Shard.ID)
	case StateConnected:
		e.detail = fmt.Sprintf("shard %v is changing its connection: try again", st.Shard)
	default:
		e.detail = fmt.Sprintf("shard %v is %s, not connected: try again when GET /shards says so", st.Shard, st.State)
	}
	return e
}

// apiError turns an error into the call's answer.
func (c *Commands) apiError(ctx context.Context, err error) error {
	switch refused, ok := errors.AsType[*commandError](err); {
	case ok:
		return &openapi.Error{Status: refused.status(), Detail: refused.detail, RetryAfter: refused.retryAfter}
	case err != nil && postgres.Unavailable(err):
		c.log.LogAttrs(ctx, slog.LevelWarn, "a command could not be handed over", slog.Any("error", err))
		return openapi.Unavailable()
	default:
		return err
	}
}

// notKnownYet answers while Discord has not said what the shards are.
func (c *Commands) notKnownYet() error {
	e := &openapi.Error{
		Status: http.StatusServiceUnavailable, RetryAfter: retryUnconnected,
		Detail: "it is not known yet which shards there are: try again",
	}
	if reasons := c.gateway.Unready(); len(reasons) > 0 {
		e.Detail, e.Reasons = "it is not known yet which shards there are: "+reasons[0], reasons
	}
	return e
}

// apiShard is a shard as the API shows it.
func apiShard(s event.Shard) openapi.ShardOfCount { return openapi.ShardOfCount{s.ID, s.Count} }

// outcome is how a command went.
type outcome string

const (
	outcomeDone        outcome = "done"
	outcomeUnconnected outcome = "not_connected"
	outcomeLimited     outcome = "limited"
	outcomeIntents     outcome = "intents_missing"
	outcomeUnanswered  outcome = "unanswered"
)

// commandError says why a command did not reach Discord. It passes from one
// instance to another.
type commandError struct {
	outcome    outcome
	detail     string
	retryAfter time.Duration
}

// Error implements error.
func (e *commandError) Error() string { return e.detail }

// status is how HTTP says it.
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

// given is what an optional field says, or the zero value.
func given[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
