package gateway

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/openapi"
)

// RestartShard implements POST /shards/{id}/restart.
func (c *Commands) RestartShard(ctx context.Context, req openapi.RestartShardRequestObject) (openapi.RestartShardResponseObject, error) {
	_, count := c.gateway.commandTarget()
	if count == 0 {
		return nil, c.notKnownYet()
	}
	if req.Params.Count != nil {
		count = *req.Params.Count
	}
	if req.Id >= count {
		return nil, openapi.NotFound(fmt.Sprintf("there is no shard %d: GET /shards lists them, from 0 to %d", req.Id, count-1))
	}
	shard := event.Shard{ID: req.Id, Count: count}
	// Reconnect is the op with which Discord itself asks for this.
	if err := c.deliver(ctx, shard, discord.OpReconnect, json.RawMessage("null")); err != nil {
		return nil, err
	}
	return openapi.RestartShard202JSONResponse{Shard: apiShard(shard)}, nil
}
