package listeners

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/oapi-codegen/nullable"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/openapi"
	"github.com/gatehook/gatehook/internal/secret"
)

// registration is a listener with the fields that only the API shows. This file
// says how its fields are stored and shown; validate.go says what a request may
// set.
type registration struct {
	event.Listener
	description          string
	createdAt, updatedAt time.Time
	disabledAt           *time.Time
	disabledReason       *string
	// newSecret is the secret to store with a new listener.
	newSecret string
}

// filterJSON is the stored form of a filter.
type filterJSON struct {
	GuildIDs   []string `json:"guild_ids,omitempty"`
	ChannelIDs []string `json:"channel_ids,omitempty"`
	UserIDs    []string `json:"user_ids,omitempty"`
}

func encodeFilter(f event.Filter) filterJSON {
	return filterJSON{decimals(f.GuildIDs), decimals(f.ChannelIDs), decimals(f.UserIDs)}
}

func decimals(ids []event.Snowflake) []string {
	var out []string
	for _, id := range ids {
		out = append(out, id.String())
	}
	return out
}

func (f filterJSON) decode() (event.Filter, error) {
	var out event.Filter
	for _, list := range []struct {
		from []string
		to   *[]event.Snowflake
	}{{f.GuildIDs, &out.GuildIDs}, {f.ChannelIDs, &out.ChannelIDs}, {f.UserIDs, &out.UserIDs}} {
		for _, s := range list.from {
			id, err := event.ParseSnowflake(s)
			if err != nil {
				return out, err
			}
			*list.to = append(*list.to, id)
		}
	}
	return out, nil
}

// columns are the columns that scan reads, of the table listeners as l.
const columns = `l.id, l.event, l.url, l.description, l.enabled, l.format, l.headers, l.filter, l.ordering, l.max_in_flight,
	l.max_age_ms, l.created_at, l.updated_at, l.disabled_at, l.disabled_reason,
	ARRAY(SELECT s.id FROM listener_secrets s
		WHERE s.listener_id = l.id AND (s.expires_at IS NULL OR s.expires_at > now()) ORDER BY s.id DESC),
	ARRAY(SELECT s.secret FROM listener_secrets s
		WHERE s.listener_id = l.id AND (s.expires_at IS NULL OR s.expires_at > now()) ORDER BY s.id DESC)`

func (s *Listeners) scan(row pgx.CollectableRow) (r registration, err error) {
	var (
		headers, filter []byte
		maxAge          *int64
		secretIDs       []int64
		secrets         []string
		stored          filterJSON
	)
	err = row.Scan(&r.ID, &r.Event, &r.URL, &r.description, &r.Enabled, &r.Format, &headers, &filter, &r.Ordering, &r.MaxInFlight,
		&maxAge, &r.createdAt, &r.updatedAt, &r.disabledAt, &r.disabledReason, &secretIDs, &secrets)
	if err != nil {
		return r, err
	}
	if r.Headers, err = openHeaders(s.cfg.Keys, r.ID, headers); err != nil {
		return r, fmt.Errorf("listener %d: %w", r.ID, err)
	}
	if err := json.Unmarshal(filter, &stored); err != nil {
		return r, fmt.Errorf("listener %d: %w", r.ID, err)
	}
	if r.Filter, err = stored.decode(); err != nil {
		return r, fmt.Errorf("listener %d: %w", r.ID, err)
	}
	if maxAge != nil {
		r.MaxAge = time.Duration(*maxAge) * time.Millisecond
	}
	for i, stored := range secrets {
		plain, err := s.cfg.Keys.Open(stored, secretRow(secretIDs[i], r.ID))
		if err != nil {
			return r, err
		}
		r.Secrets = append(r.Secrets, secret.New(plain))
	}
	return r, nil
}

// insertListener and updateListener store the values of a registration. Of two
// concurrent inserts for one event and URL, the second stores nothing. A listener
// that is disabled through the API gets the reason "manual", unless it already has a
// reason.
const (
	insertListener = `INSERT INTO listeners
			(id, event, url, description, enabled, format, headers, filter, ordering, max_in_flight, max_age_ms, disabled_at, disabled_reason)
		OVERRIDING SYSTEM VALUE
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, CASE WHEN $5 THEN NULL ELSE now() END, CASE WHEN $5 THEN NULL ELSE 'manual' END)
		ON CONFLICT (event, url) DO NOTHING RETURNING id`
	updateListener = `UPDATE listeners SET event = $2, url = $3, description = $4, enabled = $5, format = $6, headers = $7, filter = $8,
			ordering = $9, max_in_flight = $10, max_age_ms = $11, updated_at = now(),
			disabled_at = CASE WHEN $5 THEN NULL ELSE coalesce(disabled_at, now()) END,
			disabled_reason = CASE WHEN $5 THEN NULL ELSE coalesce(disabled_reason, 'manual') END
		WHERE id = $1`
)

// values returns the arguments of insertListener and updateListener. headers are the
// sealed headers.
func (r *registration) values(id int64, headers []byte) []any {
	return []any{
		id, r.Event, r.URL, r.description, r.Enabled, r.Format, headers, encodeFilter(r.Filter), r.Ordering, r.MaxInFlight, milliseconds(r.MaxAge),
	}
}

func milliseconds(d time.Duration) *int64 {
	if d == 0 {
		return nil
	}
	ms := d.Milliseconds()
	return &ms
}

// show returns a registration as the API shows it.
func show(r *registration) openapi.Listener {
	l := openapi.Listener{
		Id: event.ListenerID(r.ID), Event: r.Event, Url: r.URL, Description: r.description, Enabled: r.Enabled,
		Format: openapi.Format(r.Format), Headers: r.Headers, Ordering: openapi.Ordering(r.Ordering), MaxInFlight: r.MaxInFlight,
		MaxAge: nullable.NewNullNullable[string](), CreatedAt: r.createdAt.UTC(), UpdatedAt: r.updatedAt.UTC(),
		DisabledAt: nullable.NewNullNullable[time.Time](), DisabledReason: nullable.NewNullNullable[string](),
		Filter: openapi.Filter{
			GuildIds: shownIDs(r.Filter.GuildIDs), ChannelIds: shownIDs(r.Filter.ChannelIDs), UserIds: shownIDs(r.Filter.UserIDs),
		},
	}
	if r.MaxAge > 0 {
		l.MaxAge = nullable.NewNullableWithValue(shortDuration(r.MaxAge))
	}
	if r.disabledAt != nil {
		l.DisabledAt = nullable.NewNullableWithValue(r.disabledAt.UTC())
	}
	if r.disabledReason != nil {
		l.DisabledReason = nullable.NewNullableWithValue(*r.disabledReason)
	}
	return l
}

func shownIDs(ids []event.Snowflake) *openapi.Snowflakes {
	if len(ids) == 0 {
		return nil
	}
	list := decimals(ids)
	return &list
}

// shortDuration returns "10m" where Go says "10m0s".
func shortDuration(d time.Duration) string {
	for _, unit := range []struct {
		name string
		size time.Duration
	}{{"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}} {
		if d%unit.size == 0 {
			return strconv.FormatInt(int64(d/unit.size), 10) + unit.name
		}
	}
	return d.String()
}

// showSecret returns a registration with its secret, which the API shows only once:
// when it is made.
func showSecret(r *registration, made string, notes []string) openapi.ListenerCreated {
	l := show(r)
	out := openapi.ListenerCreated{
		CreatedAt: l.CreatedAt, Description: l.Description, DisabledAt: l.DisabledAt, DisabledReason: l.DisabledReason,
		Enabled: l.Enabled, Event: l.Event, Filter: l.Filter, Format: l.Format, Headers: l.Headers, Id: l.Id, MaxAge: l.MaxAge,
		MaxInFlight: l.MaxInFlight, Ordering: l.Ordering, UpdatedAt: l.UpdatedAt, Url: l.Url, Secret: made,
	}
	if notes != nil {
		out.Notes = &notes
	}
	return out
}
