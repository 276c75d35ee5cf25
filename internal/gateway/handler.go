package gateway

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/oapi-codegen/nullable"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/openapi"
)

// Handler serves the REST calls about shards.
type Handler struct{ g *Gateway }

// Handler returns the REST calls about this gateway's shards.
func (g *Gateway) Handler() *Handler { return &Handler{g} }

// ListShards implements GET /shards. It answers without the database too, but
// then does not say which server has which shard.
func (h *Handler) ListShards(ctx context.Context, _ openapi.ListShardsRequestObject) (openapi.ListShardsResponseObject, error) {
	out := openapi.Shards{Data: []openapi.Shard{}}
	now := time.Now()
	holders := make(map[int]map[int]event.Holder) // by set
	for _, s := range h.g.Status() {
		if holders[s.Shard.Count] == nil {
			holders[s.Shard.Count] = h.g.holders(ctx, s.Shard.Count)
		}
		shown := show(s, now)
		if holder := holders[s.Shard.Count][s.Shard.ID]; holder.Name != "" {
			shown.Instance = nullable.NewNullableWithValue(holder.Name)
			if shown.SeqStored == 0 { // another server's shard, or one that is just beginning
				shown.SeqStored = holder.Stored
			}
		}
		out.Data = append(out.Data, shown)
	}
	return openapi.ListShards200JSONResponse(out), nil
}

// holders returns which servers have the shards of a set, or nothing if the
// database does not answer soon.
func (g *Gateway) holders(ctx context.Context, count int) map[int]event.Holder {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Second, errors.New("the database took longer than 2 s"))
	defer cancel()
	holders, err := g.store.Holders(ctx, event.Snowflake(g.application.Load()), count)
	if err != nil {
		g.log.LogAttrs(ctx, slog.LevelDebug, "could not read which server has which shard", slog.Any("error", err))
		return map[int]event.Holder{}
	}
	return holders
}

// show returns a shard's status as the API shows it, with null for missing
// values.
func show(s ShardStatus, now time.Time) openapi.Shard {
	out := openapi.Shard{
		Id: s.Shard.ID, Count: s.Shard.Count, State: openapi.ShardState(s.State), Intents: s.Intents.Names(),
		SeqReceived: s.Received, SeqStored: s.Stored, Identifies: s.Identifies, Resumes: s.Resumes,
		Role:               openapi.ShardRole(s.Role),
		Instance:           nullable.NewNullNullable[string](),
		Problem:            nullable.NewNullNullable[string](),
		ConnectedAt:        nullableTime(s.ConnectedSince),
		LastHeartbeatAckAt: nullableTime(s.AckedAt),
		SessionAgeSeconds:  nullable.NewNullNullable[float32](),
		LatencyMs:          nullable.NewNullNullable[float32](),
		LastClose:          nullable.NewNullNullable[openapi.Close](),
	}
	if s.Problem != "" {
		out.Problem = nullable.NewNullableWithValue(s.Problem)
	}
	if !s.SessionSince.IsZero() {
		out.SessionAgeSeconds = nullable.NewNullableWithValue(float32(now.Sub(s.SessionSince).Seconds()))
	}
	if !s.AckedAt.IsZero() {
		out.LatencyMs = nullable.NewNullableWithValue(float32(s.Latency.Seconds() * 1000))
	}
	if !s.LastClose.At.IsZero() {
		out.LastClose = nullable.NewNullableWithValue(openapi.Close{At: s.LastClose.At.UTC(), Code: s.LastClose.Code, Reason: s.LastClose.Reason})
	}
	return out
}

func nullableTime(t time.Time) nullable.Nullable[time.Time] {
	if t.IsZero() {
		return nullable.NewNullNullable[time.Time]()
	}
	return nullable.NewNullableWithValue(t.UTC())
}
