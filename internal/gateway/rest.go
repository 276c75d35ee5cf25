package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/secret"
)

// ErrUnauthorized is what Run returns when Discord does not know the token.
var ErrUnauthorized = errors.New("the bot token was refused (HTTP 401): put the current one into DISCORD_TOKEN (developer portal, Bot, Reset Token)")

// restClient asks the few things of Discord's REST API that a gateway
// connection needs.
type restClient struct {
	base  string
	token secret.Value // without a prefix
	agent string
	http  *http.Client
	log   *slog.Logger
}

func newRESTClient(base string, token secret.Value, agent string, log *slog.Logger) *restClient {
	return &restClient{
		base: strings.TrimSuffix(base, "/"), token: token, agent: agent, log: log,
		http: &http.Client{
			Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true},
			Timeout:   15 * time.Second,
			// A redirect would carry the token to wherever it points.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

func (c *restClient) close() { c.http.CloseIdleConnections() }

// gatewayInfo is the answer of GET /gateway/bot (Discord: Get Gateway Bot).
type gatewayInfo struct {
	URL    string     `json:"url"`
	Shards int        `json:"shards"`
	Limit  startLimit `json:"session_start_limit"`
}

// startLimit is Discord's session start limit object.
type startLimit struct {
	Total      int   `json:"total"`
	Remaining  int   `json:"remaining"`
	ResetAfter int64 `json:"reset_after"` // milliseconds
	// MaxConcurrency is how many IDENTIFYs may be sent every 5 s.
	MaxConcurrency int `json:"max_concurrency"`
}

func (c *restClient) gateway(ctx context.Context) (gatewayInfo, error) {
	var info gatewayInfo
	if err := c.get(ctx, "/gateway/bot", &info); err != nil {
		return gatewayInfo{}, err
	}
	if info.URL == "" || info.Shards < 1 || info.Shards > maxShards {
		return gatewayInfo{}, fmt.Errorf("GET /gateway/bot: url %q with %d shards is not usable", info.URL, info.Shards)
	}
	if info.Limit.Total <= 0 { // not told: what every bot has
		info.Limit.Total, info.Limit.Remaining, info.Limit.ResetAfter = 1000, 1000, (24 * time.Hour).Milliseconds()
	}
	// 0 would divide by zero; Discord never gives less than 1.
	info.Limit.MaxConcurrency = max(info.Limit.MaxConcurrency, 1)
	return info, nil
}

// application is what the token belongs to.
type application struct {
	id event.Snowflake
	// privileged are the privileged intents that are switched on for it.
	privileged event.Intents
}

// privilegedFlags are the application flags that switch an intent on, in full
// or limited to small bots (Discord: Application Flags).
var privilegedFlags = map[event.Intents]int64{
	event.IntentGuildPresences: 1<<12 | 1<<13,
	event.IntentGuildMembers:   1<<14 | 1<<15,
	event.IntentMessageContent: 1<<18 | 1<<19,
}

// application asks which application the token belongs to.
func (c *restClient) application(ctx context.Context) (application, error) {
	var answer struct {
		ID    string `json:"id"`
		Flags int64  `json:"flags"`
		// Beyond 30 bits the flags are here (Discord: Application Object).
		FlagsNew string `json:"flags_new"`
	}
	if err := c.get(ctx, "/applications/@me", &answer); err != nil {
		return application{}, err
	}
	id, err := event.ParseSnowflake(answer.ID)
	if err != nil {
		return application{}, fmt.Errorf("GET /applications/@me: %w", err)
	}
	app := application{id: id}
	if more, err := strconv.ParseInt(answer.FlagsNew, 10, 64); err == nil {
		answer.Flags |= more
	}
	for intent, flags := range privilegedFlags {
		if answer.Flags&flags != 0 {
			app.privileged |= intent
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

func (c *restClient) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, http.NoBody)
	if err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	req.Header.Set("Authorization", "Bot "+c.token.Reveal())
	req.Header.Set("User-Agent", c.agent)
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	defer func() { _ = resp.Body.Close() }() // what counts was read by then
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

// insist calls f until it succeeds, the token is refused, or ctx ends. report
// hears of every failure.
func (c *restClient) insist(ctx context.Context, report func(error), f func(context.Context) error) error {
	var wait time.Duration
	exponential := newBackoff(time.Second)
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
			report(err)
			c.log.LogAttrs(ctx, slog.LevelWarn, "Discord's API did not answer, trying again", slog.Any("error", err))
		}
		return retry.RetryableError(err)
	})
}

// maxBackoff is the longest pause between two tries of anything here.
const maxBackoff = time.Minute

// newBackoff doubles from base to maxBackoff, each wait by half shorter or
// longer, so that many shards don't come back at once.
func newBackoff(base time.Duration) retry.Backoff {
	return retry.WithJitterPercent(50, retry.WithCappedDuration(maxBackoff, retry.NewExponential(base)))
}
