package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres"
	"github.com/gatehook/gatehook/internal/secret"
)

const (
	// filledOver is the age of the oldest stored event: most of the default
	// retention, in the partitions that the server would have made.
	filledOver = 6 * 24 * time.Hour
	// batchShift turns microseconds into batch numbers (see journal).
	batchShift = 10
	// maxPages is how many pages of the list of deliveries are timed.
	maxPages = 20
)

// fill stores events as if they had been delivered during the last days, and
// listeners for guilds without events. The events belong to the listener that is
// registered next. fill returns the database's size in bytes.
func fill(ctx context.Context, db secret.Value, s setup, log *slog.Logger) (size int64, err error) {
	pool, err := postgres.Open(ctx, db, log)
	if err != nil {
		return 0, err
	}
	defer pool.Close()
	if err := postgres.Migrate(ctx, pool, log); err != nil {
		return 0, err
	}
	if s.Listeners > 0 {
		if err := fillListeners(ctx, pool, s.Listeners); err != nil {
			return 0, err
		}
	}
	if s.Stored > 0 {
		if err := fillEvents(ctx, pool, s, log); err != nil {
			return 0, err
		}
	}
	// Autovacuum would have done this meanwhile.
	if _, err := pool.Exec(ctx, `VACUUM ANALYZE`); err != nil {
		return 0, fmt.Errorf("vacuum the database: %w", err)
	}
	err = pool.QueryRow(ctx, `SELECT pg_database_size(current_database())`).Scan(&size)
	return size, err
}

func fillListeners(ctx context.Context, pool *pgxpool.Pool, n int) error {
	_, err := pool.Exec(ctx, `WITH l AS (
			INSERT INTO listeners (event, url, filter)
			SELECT $1, 'https://example.com/' || i, jsonb_build_object('guild_ids', jsonb_build_array((1000000000000000000 + i)::text))
			FROM generate_series(1, $2::int) AS i RETURNING id
		) INSERT INTO listener_secrets (listener_id, secret)
		SELECT id, 'whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=' FROM l`, eventName, n)
	if err != nil {
		return fmt.Errorf("store listeners: %w", err)
	}
	return nil
}

func fillEvents(ctx context.Context, pool *pgxpool.Pool, s setup, log *slog.Logger) error {
	from := time.Now().Add(-filledOver)
	for _, p := range []postgres.Partitions{
		{Table: "events", Bound: func(t time.Time) string { return strconv.FormatInt(t.UnixMicro()<<batchShift, 10) }},
		{Table: "attempts", Bound: func(t time.Time) string { return t.UTC().Format(time.RFC3339) }},
	} {
		p.Pool, p.Logger, p.Retention = pool, log, 2*filledOver
		for at := from; at.Before(time.Now()); at = at.Add(time.Hour) {
			if err := p.Ensure(ctx, at); err != nil {
				return err
			}
		}
	}
	const perStatement = 500000
	step := (filledOver - time.Hour).Microseconds() / int64(s.Stored)
	for first := 0; first < s.Stored; first += perStatement {
		args := []any{from.UnixMicro(), step, first, min(first+perStatement, s.Stored) - 1}
		if _, err := pool.Exec(ctx, `INSERT INTO events (batch_id, ordinal, id, name, shard_id, shard_count, seq, received_at,
				guild_id, channel_id, user_id, listeners, data)
			SELECT ($1::bigint + i * $2::bigint) << 10, 0, ('00000000-0000-8000-8000-' || lpad(to_hex(i), 12, '0'))::uuid,
				$5, 0, 1, i, to_timestamp(($1::bigint + i * $2::bigint) / 1e6), 1187654321098765432, 1187654321098765450, 0,
				ARRAY[$6::bigint], convert_to('{"id":"1187654321098765450","guild_id":"1187654321098765432","status":"' || i || '"}', 'UTF8')
			FROM generate_series($3::bigint, $4::bigint) AS i`, append(args, eventName, s.Listeners+1)...); err != nil {
			return fmt.Errorf("store events: %w", err)
		}
		if _, err := pool.Exec(ctx, `INSERT INTO attempts (batch_id, ordinal, listener_id, attempt, started_at, duration_us, status,
				delivered, error, response)
			SELECT ($1::bigint + i * $2::bigint) << 10, 0, $5, 1, to_timestamp(($1::bigint + i * $2::bigint) / 1e6), 900, 204, true, '', ''
			FROM generate_series($3::bigint, $4::bigint) AS i`, append(args, s.Listeners+1)...); err != nil {
			return fmt.Errorf("store attempts: %w", err)
		}
	}
	return nil
}

// pages reads the newest deliveries of the first listener, page by page, and
// returns how many milliseconds a page took.
func (st *stage) pages(ctx context.Context) (spread, error) {
	list := "/listeners/" + event.ListenerID(int64(st.setup.Listeners)+1) + "/deliveries?limit=100"
	path := list
	var took []float64
	for range maxPages {
		began := time.Now()
		answer, err := st.server.call(ctx, http.MethodGet, path, nil, http.StatusOK)
		if err != nil {
			return spread{}, err
		}
		took = append(took, float64(time.Since(began).Microseconds())/1e3)
		var page struct {
			Next *string `json:"next_cursor"`
		}
		if err := json.Unmarshal(answer, &page); err != nil {
			return spread{}, fmt.Errorf("read a page of deliveries: %w", err)
		}
		if page.Next == nil {
			break
		}
		path = list + "&cursor=" + url.QueryEscape(*page.Next)
	}
	return spreadOf(took, func(ms float64) float64 { return ms }), nil
}
