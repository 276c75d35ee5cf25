package listeners

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/oapi-codegen/nullable"
	"golang.org/x/net/http/httpguts"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/openapi"
)

const (
	defaultInFlight = 16
	// interactionAge is how long Discord waits for the answer to an interaction: a
	// later delivery is worthless.
	interactionAge = 3 * time.Second
	// maxMaxAge is the largest max_age.
	maxMaxAge = 30 * 24 * time.Hour
	// secretBytes is the length of a generated secret; Standard Webhooks allow 24 to
	// 64 bytes.
	secretBytes    = 32
	minSecretBytes = 24
	maxSecretBytes = 64
	secretPrefix   = "whsec_"
	maxHeaderBytes = 16 << 10
	// maxURLBytes counts bytes, although the contract counts characters, because
	// PostgreSQL refuses an index entry longer than 2704 bytes.
	maxURLBytes = 2048
)

// problems collects the problems of a request, field by field.
type problems []openapi.FieldProblem

func (p *problems) add(field, format string, args ...any) {
	*p = append(*p, openapi.FieldProblem{Field: field, Detail: fmt.Sprintf(format, args...)})
}

// err returns the answer that lists the problems, or nil.
func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return openapi.FieldErrors(p)
}

// fromCreate makes a registration from a request.
func (c *Calls) fromCreate(in *openapi.ListenerCreate) (registration, error) {
	var p problems
	r := registration{
		Listener: event.Listener{
			Format: event.FormatStandard, Ordering: event.OrderingNone, MaxInFlight: defaultInFlight, Enabled: true,
			Headers: map[string]string{},
		},
	}
	r.Event = p.event(in.Event, deref(in.AllowUnknown))
	if bare, _ := strings.CutPrefix(r.Event, event.RawPrefix); bare == "INTERACTION_CREATE" {
		r.MaxAge = interactionAge
	}
	c.apply(&p, &r, change{
		url: &in.Url, description: in.Description, enabled: in.Enabled, format: in.Format, headers: in.Headers,
		filter: in.Filter, ordering: in.Ordering, maxInFlight: in.MaxInFlight,
	})
	if in.MaxAge.IsSpecified() {
		r.MaxAge = p.maxAge(in.MaxAge)
	}
	r.newSecret = p.secret(in.Secret)
	return r, p.err()
}

// withUpdate returns a registration with the changes of a request.
func (c *Calls) withUpdate(r registration, in *openapi.ListenerUpdate) (registration, error) {
	var p problems
	if in.Event != nil {
		r.Event = p.event(*in.Event, deref(in.AllowUnknown))
	}
	c.apply(&p, &r, change{
		url: in.Url, description: in.Description, enabled: in.Enabled, format: in.Format, headers: in.Headers,
		filter: in.Filter, ordering: in.Ordering, maxInFlight: in.MaxInFlight,
	})
	if in.MaxAge.IsSpecified() {
		r.MaxAge = p.maxAge(in.MaxAge)
	}
	return r, p.err()
}

// change holds the fields that creating and updating have in common; nil leaves a
// field unchanged.
type change struct {
	url, description *string
	enabled          *bool
	format           *openapi.Format
	headers          *openapi.Headers
	filter           *openapi.Filter
	ordering         *openapi.Ordering
	maxInFlight      *int
}

func (c *Calls) apply(p *problems, r *registration, in change) {
	if in.url != nil {
		r.URL = c.checkURL(p, *in.url)
	}
	if in.description != nil {
		r.description = *in.description
		p.storable("description", r.description)
	}
	if in.enabled != nil {
		r.Enabled = *in.enabled
	}
	if in.format != nil {
		r.Format = event.Format(*in.format)
	}
	if in.headers != nil {
		r.Headers = p.headers(*in.headers)
	}
	if in.filter != nil {
		r.Filter = event.Filter{
			GuildIDs:   p.snowflakes("filter.guild_ids", in.filter.GuildIds),
			ChannelIDs: p.snowflakes("filter.channel_ids", in.filter.ChannelIds),
			UserIDs:    p.snowflakes("filter.user_ids", in.filter.UserIds),
		}
	}
	if in.ordering != nil {
		r.Ordering = event.Ordering(*in.ordering)
	}
	if in.maxInFlight != nil {
		r.MaxInFlight = *in.maxInFlight
	}
}

// storable refuses text that PostgreSQL can't store.
func (p *problems) storable(field, s string) {
	if strings.ContainsRune(s, 0) || !utf8.ValidString(s) {
		p.add(field, "it contains a NUL byte or is not UTF-8")
	}
}

// event normalizes a name or pattern, and refuses one that matches no event.
func (p *problems) event(s string, allowUnknown bool) string {
	s = strings.ToUpper(strings.TrimSpace(s))
	pattern, err := event.ParsePattern(s)
	switch {
	case err != nil:
		p.add("event", "%v", err)
	case !allowUnknown && !pattern.Known() && pattern.Prefix:
		p.add("event", "no event's name matches %q: GET /events/types lists all names, \"allow_unknown\": true accepts it anyway", s)
	case !allowUnknown && !pattern.Known():
		p.add("event", "%q is not known; the nearest are %s; \"allow_unknown\": true accepts it anyway",
			s, strings.Join(event.Nearest(s, 3), ", "))
	}
	return s
}

// checkURL refuses a URL to which nothing can ever be delivered, and normalizes any other
// one. The addresses that a name resolves to are checked when it is dialed.
func (c *Calls) checkURL(p *problems, raw string) string {
	u, err := callback.ParseURL(raw)
	switch {
	case err != nil:
		p.add("url", "%v", err)
		return raw
	case len(raw) > maxURLBytes || len(u.String()) > maxURLBytes:
		p.add("url", "it is longer than %d bytes", maxURLBytes)
	case u.User != nil:
		p.add("url", "it contains a user or password: put credentials into headers")
	case u.Fragment != "" || strings.HasSuffix(raw, "#"):
		p.add("url", "it has a fragment (#…), which is never sent")
	default:
		if err := callback.CheckTarget(c.cfg.AllowTargets, u); err != nil {
			p.add("url", "%v", err)
		}
	}
	return u.String()
}

// reserved are the headers that a delivery sets itself, or that control the
// connection.
var reserved = []string{
	"accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect", "host", "keep-alive",
	"proxy-connection", "te", "traceparent", "tracestate", "trailer", "transfer-encoding", "upgrade", "user-agent",
}

// reservedPrefixes are the prefixes of headers that a delivery sets itself.
var reservedPrefixes = []string{"webhook-", "gatehook-", "x-signature-"}

func (p *problems) headers(in map[string]string) map[string]string {
	out := make(map[string]string, len(in))
	size := 0
	for _, name := range slices.Sorted(maps.Keys(in)) {
		value, field := in[name], "headers."+name
		lower := strings.ToLower(name)
		_, twice := out[lower]
		size += len(name) + len(value)
		switch {
		case !httpguts.ValidHeaderFieldName(name):
			p.add(field, "%q is not a header name", name)
		case !httpguts.ValidHeaderFieldValue(value):
			p.add(field, "its value contains characters that a header can't have")
		case isReserved(lower):
			p.add(field, "Gatehook sets %s itself", name)
		case twice:
			p.add(field, "it is given twice")
		}
		out[lower] = value
	}
	if size > maxHeaderBytes {
		p.add("headers", "together they are larger than %d bytes", maxHeaderBytes)
	}
	return out
}

func isReserved(lower string) bool {
	if slices.Contains(reserved, lower) {
		return true
	}
	for _, prefix := range reservedPrefixes {
		if strings.HasPrefix(lower, prefix) {
			return true
		}
	}
	return false
}

func (p *problems) snowflakes(field string, in *openapi.Snowflakes) []event.Snowflake {
	if in == nil {
		return nil
	}
	out := make([]event.Snowflake, 0, len(*in))
	for i, s := range *in {
		id, err := event.ParseSnowflake(s)
		if err != nil {
			p.add(fmt.Sprintf("%s.%d", field, i), "%v", err)
		}
		out = append(out, id)
	}
	return out
}

func (p *problems) maxAge(given nullable.Nullable[string]) time.Duration {
	s, err := given.Get()
	if err != nil {
		return 0 // null: no limit
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Millisecond || d > maxMaxAge || d%time.Millisecond != 0 {
		p.add("max_age", "%q is not a duration in whole milliseconds from 1ms to %s such as 3s, or null", s, shortDuration(maxMaxAge))
	}
	return d
}

// secret checks the given secret, or generates one.
func (p *problems) secret(given *string) string {
	if given == nil {
		b := make([]byte, secretBytes)
		_, _ = rand.Read(b) // never fails, by its documentation
		return secretPrefix + base64.StdEncoding.EncodeToString(b)
	}
	encoded, ok := strings.CutPrefix(*given, secretPrefix)
	key, err := base64.StdEncoding.Strict().DecodeString(encoded)
	// The value is not shown: it may be somebody's real secret.
	if !ok || err != nil || len(key) < minSecretBytes || len(key) > maxSecretBytes || strings.ContainsAny(encoded, "\r\n") {
		p.add("secret", "it is not %s followed by the base64 of %d to %d bytes; leave it out to have one generated", secretPrefix, minSecretBytes, maxSecretBytes)
	}
	return *given
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
