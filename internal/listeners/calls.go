package listeners

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/oapi-codegen/nullable"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/openapi"
	"github.com/gatehook/gatehook/internal/postgres"
	"github.com/gatehook/gatehook/internal/secret"
)

const (
	// callTimeout limits the time of a call's work in the database.
	callTimeout  = 10 * time.Second
	defaultLimit = 50
)

// Calls serves the REST calls that register, change and show listeners.
type Calls struct {
	listeners *Listeners
	cfg       CallsConfig
}

// CallsConfig configures the checks that Calls makes before it registers a
// listener. Gateway and Callbacks are required.
type CallsConfig struct {
	// AllowTargets are the private ranges that callbacks may resolve to; nil for
	// none.
	AllowTargets []netip.Prefix
	Gateway      Gateway
	Callbacks    Callbacks
}

// Gateway knows which events Discord sends to this bot.
type Gateway interface {
	// Advise returns why a listener can never receive the events of a pattern
	// (refusal), or "" and notes on the consequences of registering for them. before
	// are the intents that were needed so far.
	Advise(ctx context.Context, p event.Pattern, before event.Intents) (refusal string, notes []string)
}

// Callbacks reaches the callbacks of listeners.
type Callbacks interface {
	// Ping returns an error if a callback in the format discord does not verify
	// signatures.
	Ping(context.Context, *event.Listener) error
}

// NewCalls returns the calls of these listeners.
func NewCalls(l *Listeners, cfg CallsConfig) *Calls { return &Calls{listeners: l, cfg: cfg} }

// CreateListener implements POST /listeners.
func (c *Calls) CreateListener(ctx context.Context, req openapi.CreateListenerRequestObject) (openapi.CreateListenerResponseObject, error) {
	r, err := c.fromCreate(req.Body)
	if err != nil {
		return nil, err
	}
	notes, err := c.advise(ctx, nil, &r)
	if err != nil {
		return nil, err
	}
	if err := c.locate(ctx, nil, &r); err != nil {
		return nil, err
	}
	if err := c.ping(ctx, nil, &r, req.Body.Verify); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	after, err := c.listeners.insert(ctx, r)
	if err != nil {
		return nil, answer(err)
	}
	location := "/listeners/" + event.ListenerID(after.ID)
	return openapi.CreateListener201JSONResponse{
		Headers: openapi.CreateListener201ResponseHeaders{Location: &location, ETag: etag(after)}, Body: showSecret(after, r.newSecret, notes),
	}, nil
}

// RotateListenerSecret implements POST /listeners/{id}/rotate-secret.
func (c *Calls) RotateListenerSecret(ctx context.Context, req openapi.RotateListenerSecretRequestObject) (openapi.RotateListenerSecretResponseObject, error) {
	id, ok := event.ParseListenerID(req.Id)
	if !ok {
		return nil, noListener(req.Id)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var none problems
	made := none.secret(nil)
	after, err := c.listeners.rotate(ctx, id, made)
	if errors.Is(err, errNone) {
		return nil, noListener(req.Id)
	}
	if err != nil {
		return nil, answer(err)
	}
	return openapi.RotateListenerSecret200JSONResponse{
		Body: showSecret(after, made, nil), Headers: openapi.RotateListenerSecret200ResponseHeaders{ETag: etag(after)},
	}, nil
}

// ListListeners implements GET /listeners.
func (c *Calls) ListListeners(ctx context.Context, req openapi.ListListenersRequestObject) (openapi.ListListenersResponseObject, error) {
	limit, before := defaultLimit, int64(math.MaxInt64)
	if req.Params.Limit != nil {
		limit = *req.Params.Limit
	}
	if req.Params.Cursor != nil {
		id, ok := event.ParseListenerID(*req.Params.Cursor)
		if !ok {
			return nil, openapi.FieldError("cursor", fmt.Sprintf("%q is not the next_cursor of a page", *req.Params.Cursor))
		}
		before = id
	}
	if err := checkPair(req.Params.Event, req.Params.Url); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	// One more than requested, to see whether there is another page.
	var urls []string
	if req.Params.Url != nil {
		urls = forms(*req.Params.Url)
	}
	list, err := c.listeners.page(ctx, req.Params.Event, urls, before, limit+1)
	if err != nil {
		return nil, answer(err)
	}
	page := openapi.ListenerPage{Data: []openapi.Listener{}, NextCursor: nullable.NewNullNullable[string]()}
	for i := range list[:min(limit, len(list))] {
		page.Data = append(page.Data, show(&list[i]))
	}
	if len(list) > limit {
		page.NextCursor = nullable.NewNullableWithValue(event.ListenerID(list[limit-1].ID))
	}
	return openapi.ListListeners200JSONResponse(page), nil
}

// GetListener implements GET /listeners/{id}.
func (c *Calls) GetListener(ctx context.Context, req openapi.GetListenerRequestObject) (openapi.GetListenerResponseObject, error) {
	id, ok := event.ParseListenerID(req.Id)
	if !ok {
		return nil, noListener(req.Id)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := c.listeners.find(ctx, c.listeners.pool, `l.id = $1`, id)
	if errors.Is(err, errNone) {
		return nil, noListener(req.Id)
	}
	if err != nil {
		return nil, answer(err)
	}
	return openapi.GetListener200JSONResponse{Body: show(&r), Headers: openapi.GetListener200ResponseHeaders{ETag: etag(&r)}}, nil
}

// UpdateListener implements PATCH /listeners/{id}.
func (c *Calls) UpdateListener(ctx context.Context, req openapi.UpdateListenerRequestObject) (openapi.UpdateListenerResponseObject, error) {
	id, ok := event.ParseListenerID(req.Id)
	if !ok {
		return nil, noListener(req.Id)
	}
	notes, err := c.checkUpdate(ctx, id, req)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	after, err := c.listeners.update(ctx, id, func(r registration) (registration, error) {
		if err := checkMatch(req.Params.IfMatch, &r); err != nil {
			return r, err
		}
		return c.withUpdate(r, req.Body)
	})
	if errors.Is(err, errNone) {
		return nil, noListener(req.Id)
	}
	if err != nil {
		return nil, answer(err)
	}
	shown := show(after)
	shown.Notes = &notes
	return openapi.UpdateListener200JSONResponse{Body: shown, Headers: openapi.UpdateListener200ResponseHeaders{ETag: etag(after)}}, nil
}

// checkUpdate runs advise, locate and ping for a change, and returns the notes. It
// runs before the transaction, which must wait neither for a callback nor for
// Discord. An error of the database is left to the transaction.
func (c *Calls) checkUpdate(ctx context.Context, id int64, req openapi.UpdateListenerRequestObject) ([]string, error) {
	in := req.Body
	read, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	before, err := c.listeners.find(read, c.listeners.pool, `l.id = $1`, id)
	if err != nil {
		return []string{}, nil //nolint:nilerr // the transaction reports it
	}
	if err := checkMatch(req.Params.IfMatch, &before); err != nil {
		return nil, err
	}
	after, err := c.withUpdate(before, in)
	if err != nil {
		return nil, err
	}
	notes, err := c.advise(ctx, &before, &after)
	if err != nil {
		return nil, err
	}
	if err := c.locate(ctx, &before, &after); err != nil {
		return nil, err
	}
	return notes, c.ping(ctx, &before, &after, in.Verify)
}

// locate refuses a URL that can't be dialed now. before is the registration before
// a change, nil for a new one.
func (c *Calls) locate(ctx context.Context, before, after *registration) error {
	if before != nil && before.URL == after.URL {
		return nil
	}
	u, err := url.Parse(after.URL)
	if err == nil {
		err = callback.Locate(ctx, c.cfg.AllowTargets, nil, u)
	}
	if err != nil {
		return openapi.FieldError("url", err.Error())
	}
	return nil
}

// ping refuses a callback in the format discord that does not verify
// signatures. before is the registration before a change, nil for a new one.
func (c *Calls) ping(ctx context.Context, before, after *registration, verify *bool) error {
	if after.Format != event.FormatDiscord || verify != nil && !*verify ||
		before != nil && before.Format == after.Format && before.URL == after.URL {
		return nil
	}
	l := after.Listener
	if len(l.Secrets) == 0 {
		l.Secrets = []secret.Value{secret.New(after.newSecret)}
	}
	if err := c.cfg.Callbacks.Ping(ctx, &l); err != nil {
		return openapi.FieldError("url", err.Error())
	}
	return nil
}

// advise refuses a listener that can never receive an event, and returns notes about
// any other. before is the registration before a change, nil for a new one.
func (c *Calls) advise(ctx context.Context, before, after *registration) (notes []string, err error) {
	notes = []string{}
	if !after.Enabled || before != nil && before.Enabled && before.Event == after.Event {
		return notes, nil
	}
	p, err := event.ParsePattern(after.Event)
	if err != nil {
		return nil, openapi.FieldError("event", err.Error())
	}
	refusal, more := c.cfg.Gateway.Advise(ctx, p, c.listeners.Needs())
	if refusal != "" {
		return nil, openapi.FieldError("event", refusal)
	}
	return append(notes, more...), nil
}

// DeleteListener implements DELETE /listeners/{id}.
func (c *Calls) DeleteListener(ctx context.Context, req openapi.DeleteListenerRequestObject) (openapi.DeleteListenerResponseObject, error) {
	id, ok := event.ParseListenerID(req.Id)
	if !ok {
		return nil, noListener(req.Id)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := c.listeners.remove(ctx, func(r *registration) error { return checkMatch(req.Params.IfMatch, r) }, `l.id = $1`, id)
	if errors.Is(err, errNone) {
		return nil, noListener(req.Id)
	}
	if err != nil {
		return nil, answer(err)
	}
	return openapi.DeleteListener204Response{}, nil
}

// DeleteListenerByPair implements DELETE /listeners?event=&url=.
func (c *Calls) DeleteListenerByPair(ctx context.Context, req openapi.DeleteListenerByPairRequestObject) (openapi.DeleteListenerByPairResponseObject, error) {
	if err := checkPair(&req.Params.Event, &req.Params.Url); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := c.listeners.remove(ctx, nil, `l.id = (SELECT id FROM listeners WHERE event = $1 AND url = ANY($2) ORDER BY id LIMIT 1)`, req.Params.Event, forms(req.Params.Url))
	if errors.Is(err, errNone) {
		return nil, openapi.NotFound(fmt.Sprintf("no listener is registered for %q and this url", req.Params.Event))
	}
	if err != nil {
		return nil, answer(err)
	}
	return openapi.DeleteListenerByPair204Response{}, nil
}

// ListEventTypes implements GET /events/types.
func (c *Calls) ListEventTypes(context.Context, openapi.ListEventTypesRequestObject) (openapi.ListEventTypesResponseObject, error) {
	out := openapi.EventTypes{Data: []openapi.EventType{}}
	for _, t := range event.Types() {
		model := nullable.NewNullNullable[string]()
		if t.Model != "" {
			model.Set(t.Model)
		}
		out.Data = append(out.Data, openapi.EventType{
			Name: t.Name, RawName: event.RawPrefix + t.Name, Group: openapi.EventTypeGroup(t.Group), About: t.About,
			Intents: t.Intents.Names(), Privileged: t.Privileged(), Parsed: t.Model != "", Model: model,
		})
	}
	return openapi.ListEventTypes200JSONResponse(out), nil
}

// checkPair normalizes the event of a query, and refuses an event or URL that can't
// be registered. Either is nil if the query does not have it.
func checkPair(name, url *string) error {
	var p problems
	if name != nil {
		*name = strings.ToUpper(strings.TrimSpace(*name))
		p.storable("event", *name)
	}
	if url != nil {
		p.storable("url", *url)
	}
	return p.err()
}

// forms returns how a URL of a query can be stored: normalized, or as an older version
// stored it.
func forms(raw string) []string {
	if u, err := callback.ParseURL(raw); err == nil {
		return []string{raw, u.String()}
	}
	return []string{raw}
}

func noListener(id string) error {
	return openapi.NotFound(fmt.Sprintf("there is no listener %q: GET /listeners lists them", id))
}

// answer turns an error of a change into the call's answer.
func answer(err error) error {
	var (
		taken   *takenError
		refused *openapi.Error
	)
	switch {
	case errors.As(err, &refused):
		return refused
	case errors.As(err, &taken):
		return &openapi.Error{
			Status: http.StatusConflict, ListenerID: event.ListenerID(taken.id),
			Detail: fmt.Sprintf("listener %s is registered for this event and url: change or delete it", event.ListenerID(taken.id)),
			Fields: []openapi.FieldProblem{{Field: "url", Detail: "the pair of event and url is taken"}},
		}
	case errors.Is(err, errVanished), postgres.Unavailable(err):
		return openapi.Unavailable()
	default:
		return err
	}
}
