package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/oapi-codegen/nullable"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/openapi"
)

const (
	// presenceLimit is how many changes Discord takes within presenceWindow
	// (Discord: Activity Object).
	presenceLimit  = 5
	presenceWindow = 20 * time.Second
	// presenceMargin is added to presenceWindow on a connection, because Discord
	// counts from when the changes arrive.
	presenceMargin = 250 * time.Millisecond
	// maxPresence bounds a presence, in bytes. It leaves room for the rest of an
	// IDENTIFY.
	maxPresence = discord.MaxSend - 512
)

// The types of an activity that are checked (Discord: Activity Types).
const (
	activityStreaming = 1
	activityCustom    = 4
)

// presenceCommand is the d of Update Presence (Discord: Update Presence).
type presenceCommand struct {
	Since      *int64                `json:"since"` // milliseconds since 1970
	Activities []openapi.BotActivity `json:"activities"`
	Status     string                `json:"status"`
	AFK        bool                  `json:"afk"`
}

// presence is the presence that the bot shows. The zero value means that none
// was set.
type presence struct {
	version int64
	d       json.RawMessage // a presenceCommand
	at      time.Time
}

// SetPresence implements PUT /presence.
func (c *Commands) SetPresence(ctx context.Context, req openapi.SetPresenceRequestObject) (openapi.SetPresenceResponseObject, error) {
	applicationID, _ := c.gateway.commandTarget()
	if applicationID == 0 {
		return nil, c.notKnownYet()
	}
	if problems := checkPresence(req.Body); len(problems) > 0 {
		return nil, openapi.FieldErrors(problems)
	}
	d, err := encodePresence(req.Body)
	if err != nil {
		return nil, err
	}
	p, wait, err := c.relay.setPresence(ctx, applicationID, d)
	if err != nil {
		return nil, c.apiError(ctx, err)
	}
	if wait > 0 {
		return nil, &openapi.Error{
			Status: http.StatusTooManyRequests, RetryAfter: wait,
			Detail: fmt.Sprintf("the presence was changed %d times in %v, and Discord takes no more: try again in %v",
				presenceLimit, presenceWindow, wait.Round(time.Millisecond)),
		}
	}
	wake(c.poll)
	body, err := p.show()
	return openapi.SetPresence200JSONResponse(body), err
}

// GetPresence implements GET /presence.
func (c *Commands) GetPresence(ctx context.Context, _ openapi.GetPresenceRequestObject) (openapi.GetPresenceResponseObject, error) {
	applicationID, _ := c.gateway.commandTarget()
	if applicationID == 0 {
		return nil, c.notKnownYet()
	}
	p, err := c.relay.presence(ctx, applicationID)
	if err != nil {
		return nil, c.apiError(ctx, err)
	}
	if p.version == 0 {
		return nil, openapi.NotFound("no presence was set, so Discord shows the bot as online: PUT /presence sets one")
	}
	body, err := p.show()
	return openapi.GetPresence200JSONResponse(body), err
}

// checkPresence returns a problem for everything that Discord would not show.
func checkPresence(r *openapi.SetPresence) (problems []openapi.FieldProblem) {
	for i, a := range given(r.Activities) {
		refuse := func(field, detail string) {
			problems = append(problems, openapi.FieldProblem{Field: fmt.Sprintf("activities.%d.%s", i, field), Detail: detail})
		}
		switch {
		case a.Url != nil && a.Type != activityStreaming:
			refuse("url", fmt.Sprintf("it is for streaming (type %d) only: leave it out", activityStreaming))
		case a.Url != nil && !isStream(*a.Url):
			refuse("url", fmt.Sprintf("%q is not a URL on https://twitch.tv/ or https://youtube.com/: Discord shows no other", *a.Url))
		case a.State == nil && a.Type == activityCustom:
			refuse("state", fmt.Sprintf("a custom status (type %d) shows nothing but its state: give one", activityCustom))
		}
	}
	return problems
}

// isStream reports whether Discord accepts the URL as a stream (Discord:
// Activity Types).
func isStream(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" {
		return false
	}
	host := strings.TrimPrefix(strings.ToLower(u.Host), "www.")
	return host == "twitch.tv" || host == "youtube.com"
}

// encodePresence encodes a presence as Discord expects it.
func encodePresence(r *openapi.SetPresence) (json.RawMessage, error) {
	d := presenceCommand{Activities: given(r.Activities), Status: string(r.Status), AFK: given(r.Afk)}
	if d.Activities == nil {
		d.Activities = []openapi.BotActivity{} // Discord refuses null
	}
	if since, err := r.Since.Get(); err == nil { // an error stands for null
		d.Since = &since
	}
	b, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encode a presence: %w", err)
	}
	if len(b) > maxPresence {
		return nil, openapi.FieldError("activities",
			fmt.Sprintf("the presence has %d bytes when it is sent to Discord: at most %d are accepted", len(b), maxPresence))
	}
	return b, nil
}

// show returns the presence as the API shows it.
func (p presence) show() (openapi.BotPresence, error) {
	var d presenceCommand
	if err := json.Unmarshal(p.d, &d); err != nil {
		return openapi.BotPresence{}, fmt.Errorf("read the presence: %w", err)
	}
	out := openapi.BotPresence{
		Status: openapi.PresenceStatus(d.Status), Activities: d.Activities, Afk: d.AFK,
		Since: nullable.NewNullNullable[int64](), UpdatedAt: p.at.UTC(),
	}
	if d.Since != nil {
		out.Since = nullable.NewNullableWithValue(*d.Since)
	}
	return out, nil
}

// sendPresence sends the presence over every connection of this process that
// shows another one. If a connection can't take it now, the next round of Run
// tries again.
func (c *Commands) sendPresence(ctx context.Context, p presence, now time.Time, sending *sync.WaitGroup) {
	for _, s := range c.gateway.owned() {
		r := s.liveLink()
		if r == nil || r.presence.Load() == p.version || r.presences.Wait(now, 0) > 0 {
			continue
		}
		r.presences.Add(now)
		r.presence.Store(p.version)
		sending.Go(func() {
			if err := c.send(ctx, r, discord.OpPresence, p.d); err != nil {
				r.presence.CompareAndSwap(p.version, 0)
				s.log.LogAttrs(ctx, slog.LevelDebug, "could not send the presence, trying again", slog.Any("error", err))
			}
		})
	}
}
