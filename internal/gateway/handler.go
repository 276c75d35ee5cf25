package gateway

import (
	"context"
	"time"

	"github.com/oapi-codegen/nullable"

	"github.com/gatehook/gatehook/internal/openapi"
)

// Handler serves the REST calls about shards.
type Handler struct{ g *Gateway }

// Handler returns the REST calls about this gateway's shards.
func (g *Gateway) Handler() *Handler { return &Handler{g} }

// ListShards implements GET /shards.
func (h *Handler) ListShards(context.Context, openapi.ListShardsRequestObject) (openapi.ListShardsResponseObject, error) {
	out := openapi.Shards{Data: []openapi.Shard{}}
	now := time.Now()
	for _, s := range h.g.Status() {
		out.Data = append(out.Data, show(s, now))
	}
	return openapi.ListShards200JSONResponse(out), nil
}

// show is a shard's status as the API shows it: null for what there is not.
func show(s ShardStatus, now time.Time) openapi.Shard {
	out := openapi.Shard{
		Id: s.Shard.ID, Count: s.Shard.Count, State: openapi.ShardState(s.State), Intents: s.Intents.Names(),
		SeqReceived: s.Received, SeqStored: s.Stored, Identifies: s.Identifies, Resumes: s.Resumes,
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
