package discord

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/secret"
)

// ErrUnauthorized says that Discord does not know the token.
var ErrUnauthorized = errors.New("the bot token was refused (HTTP 401): put the current one into DISCORD_TOKEN (developer portal, Bot, Reset Token)")

// RESTConfig says how a REST reaches Discord's API.
type RESTConfig struct {
	// URL is the base of the API, such as https://discord.com/api/v10.
	URL string
	// Token of the bot, without the prefix "Bot ".
	Token secret.Value
	// Agent is the User-Agent header (Discord: User Agent).
	Agent string
	// Dial opens the sockets; nil means a net.Dialer.
	Dial DialFunc
}

// REST makes the few calls of Discord's REST API that a gateway client needs.
// It follows no redirect, and each call takes at most 15 s. It is safe for
// concurrent use.
type REST struct {
	cfg  RESTConfig
	http *http.Client
}

// NewREST returns a REST. The caller closes it.
func NewREST(cfg RESTConfig) *REST {
	cfg.URL = strings.TrimSuffix(cfg.URL, "/")
	return &REST{cfg, &http.Client{
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, DialContext: cfg.Dial, ForceAttemptHTTP2: true},
		Timeout:       15 * time.Second,
		CheckRedirect: followNone,
	}}
}

// Close closes the idle connections.
func (c *REST) Close() { c.http.CloseIdleConnections() }

// GatewayInfo is the answer of GET /gateway/bot (Discord: Get Gateway Bot).
type GatewayInfo struct {
	URL    string     `json:"url"`    // where to connect
	Shards int        `json:"shards"` // how many Discord recommends, 1 to MaxShards
	Limit  StartLimit `json:"session_start_limit"`
}

// StartLimit is how many sessions may be started (Discord: Session Start Limit
// Object).
type StartLimit struct {
	Total      int   `json:"total"`
	Remaining  int   `json:"remaining"`
	ResetAfter int64 `json:"reset_after"` // milliseconds
	// MaxConcurrency is how many IDENTIFYs may be sent every 5 s, at least 1.
	MaxConcurrency int `json:"max_concurrency"`
}

// Gateway asks where to connect, and how many sessions may be started. The
// error is ErrUnauthorized if Discord does not know the token. An answer that
// cannot be used is an error too.
func (c *REST) Gateway(ctx context.Context) (GatewayInfo, error) {
	var info GatewayInfo
	if err := c.get(ctx, "/gateway/bot", &info); err != nil {
		return GatewayInfo{}, err
	}
	if info.URL == "" || info.Shards < 1 || info.Shards > MaxShards {
		return GatewayInfo{}, fmt.Errorf("GET /gateway/bot: url %q with %d shards is not usable", info.URL, info.Shards)
	}
	if info.Limit.Total <= 0 { // missing: assume the limit of a usual bot
		info.Limit.Total, info.Limit.Remaining, info.Limit.ResetAfter = 1000, 1000, (24 * time.Hour).Milliseconds()
	}
	// The database has no room for more, and nobody has that many.
	info.Limit.Total = min(info.Limit.Total, math.MaxInt32)
	info.Limit.Remaining = min(max(info.Limit.Remaining, 0), math.MaxInt32)
	// Discord never gives less than 1, and 0 would divide by zero.
	info.Limit.MaxConcurrency = max(info.Limit.MaxConcurrency, 1)
	return info, nil
}

// Application is the application that a token belongs to.
type Application struct {
	ID event.Snowflake
	// Privileged are the privileged intents that are switched on for it
	// (Discord: Privileged Intents).
	Privileged event.Intents
}

// privilegedFlags are the application flags that switch an intent on, in full
// or limited to small bots (Discord: Application Flags).
var privilegedFlags = map[event.Intents]int64{
	event.IntentGuildPresences: 1<<12 | 1<<13,
	event.IntentGuildMembers:   1<<14 | 1<<15,
	event.IntentMessageContent: 1<<18 | 1<<19,
}

// Application asks which application the token belongs to. The error is
// ErrUnauthorized if Discord does not know the token.
func (c *REST) Application(ctx context.Context) (Application, error) {
	var answer struct {
		ID    string `json:"id"`
		Flags int64  `json:"flags"`
		// Beyond 30 bits the flags are here (Discord: Application Object).
		FlagsNew string `json:"flags_new"`
	}
	if err := c.get(ctx, "/applications/@me", &answer); err != nil {
		return Application{}, err
	}
	id, err := event.ParseSnowflake(answer.ID)
	if err != nil {
		return Application{}, fmt.Errorf("GET /applications/@me: %w", err)
	}
	app := Application{ID: id}
	if more, err := strconv.ParseInt(answer.FlagsNew, 10, 64); err == nil {
		answer.Flags |= more
	}
	for intent, flags := range privilegedFlags {
		if answer.Flags&flags != 0 {
			app.Privileged |= intent
		}
	}
	return app, nil
}

// statusError is an answer other than 200.
type statusError struct {
	path       string
	status     int
	retryAfter time.Duration
}

// Error implements error.
func (e *statusError) Error() string { return fmt.Sprintf("GET %s: HTTP %d", e.path, e.status) }

func (c *REST) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.cfg.URL+path, http.NoBody)
	if err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	req.Header.Set("Authorization", "Bot "+c.cfg.Token.Reveal())
	req.Header.Set("User-Agent", c.cfg.Agent)
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	defer func() { _ = resp.Body.Close() }() // an error comes too late to matter
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
		return ErrUnauthorized
	case resp.StatusCode != http.StatusOK:
		return &statusError{path: path, status: resp.StatusCode, retryAfter: retryAfter(resp.Header)}
	case err != nil:
		return fmt.Errorf("GET %s: read the answer: %w", path, err)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("GET %s: parse the answer: %w", path, err)
	}
	return nil
}

// retryAfter reads the header in Discord's form: seconds.
func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.ParseFloat(h.Get("Retry-After"), 64)
	if err == nil && seconds >= 0 && seconds <= 24*3600 { // false for NaN
		return time.Duration(seconds * float64(time.Second))
	}
	return 0
}

// Insist calls f until it succeeds, ctx ends, or the token is refused, which is
// an ErrUnauthorized. Between two calls it waits: 1 s at first and up to
// MaxBackoff later, or as long as Discord asked for. It calls failed with every
// error after which it tries again.
func Insist(ctx context.Context, failed func(error), f func(context.Context) error) error {
	var wait time.Duration
	exponential := NewBackoff(time.Second)
	backoff := retry.BackoffFunc(func() (time.Duration, bool) {
		next, stop := exponential.Next()
		return max(next, wait), stop
	})
	return retry.Do(ctx, backoff, func(ctx context.Context) error {
		err := f(ctx)
		if err == nil || errors.Is(err, ErrUnauthorized) {
			return err
		}
		wait = 0
		if status, ok := errors.AsType[*statusError](err); ok {
			wait = status.retryAfter
		}
		if ctx.Err() == nil {
			failed(err)
		}
		return retry.RetryableError(err)
	})
}
