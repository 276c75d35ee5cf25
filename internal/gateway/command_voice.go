package gateway

import (
	"context"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/openapi"
)

// voiceCommand is the d of Update Voice State (Discord: Update Voice State).
type voiceCommand struct {
	GuildID   string  `json:"guild_id"`
	ChannelID *string `json:"channel_id"` // null to leave
	SelfMute  bool    `json:"self_mute"`
	SelfDeaf  bool    `json:"self_deaf"`
}

// UpdateVoiceState implements PUT /guilds/{id}/voice-state.
func (c *Commands) UpdateVoiceState(ctx context.Context, req openapi.UpdateVoiceStateRequestObject) (openapi.UpdateVoiceStateResponseObject, error) {
	guild, err := event.ParseSnowflake(req.Id)
	if err != nil {
		return nil, openapi.FieldError("id", err.Error())
	}
	d := voiceCommand{GuildID: guild.String(), SelfMute: given(req.Body.SelfMute), SelfDeaf: given(req.Body.SelfDeaf)}
	if channel, err := req.Body.ChannelId.Get(); err == nil { // an error stands for null
		id, err := event.ParseSnowflake(channel)
		if err != nil {
			return nil, openapi.FieldError("channel_id", err.Error())
		}
		text := id.String()
		d.ChannelID = &text
	}
	shard, err := c.deliverGuild(ctx, guild, discord.OpVoiceState, d)
	if err != nil {
		return nil, err
	}
	return openapi.UpdateVoiceState202JSONResponse{Shard: apiShard(shard)}, nil
}
