package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/openapi"
)

// The limits of Request Guild Members. Discord ignores a longer nonce, and cuts
// off what exceeds the other limits (Discord: Request Guild Members).
const (
	maxNonce   = 32 // bytes
	maxUserIDs = 100
	maxMatches = 100 // members that a query may find
)

// membersCommand is the d of Request Guild Members.
type membersCommand struct {
	GuildID   string   `json:"guild_id"`
	Query     *string  `json:"query,omitempty"`
	Limit     *int     `json:"limit,omitempty"`
	Presences bool     `json:"presences,omitempty"`
	UserIDs   []string `json:"user_ids,omitempty"`
	Nonce     string   `json:"nonce"`
}

// RequestGuildMembers implements POST /guilds/{id}/members/request.
func (c *Commands) RequestGuildMembers(ctx context.Context, req openapi.RequestGuildMembersRequestObject) (openapi.RequestGuildMembersResponseObject, error) {
	guild, err := event.ParseSnowflake(req.Id)
	if err != nil {
		return nil, openapi.FieldError("id", err.Error())
	}
	if problems := checkMembers(req.Body); len(problems) > 0 {
		return nil, openapi.FieldErrors(problems)
	}
	d := membersCommand{
		GuildID: guild.String(), Query: req.Body.Query, Limit: req.Body.Limit, Presences: given(req.Body.Presences),
		UserIDs: given(req.Body.UserIds), Nonce: given(req.Body.Nonce),
	}
	if d.Nonce == "" {
		d.Nonce = strings.ReplaceAll(uuid.NewString(), "-", "") // as long as allowed
	}
	shard, err := c.deliverGuild(ctx, guild, discord.OpMembers, d)
	if err != nil {
		return nil, err
	}
	return openapi.RequestGuildMembers202JSONResponse{Shard: apiShard(shard), Nonce: d.Nonce}, nil
}

// checkMembers returns a problem for everything that Discord would ignore, cut
// off or close the connection for.
func checkMembers(r *openapi.MembersRequest) (problems []openapi.FieldProblem) {
	refuse := func(field, format string, args ...any) {
		problems = append(problems, openapi.FieldProblem{Field: field, Detail: fmt.Sprintf(format, args...)})
	}
	switch {
	case r.Query != nil && r.UserIds != nil:
		refuse("user_ids", "give either query or user_ids, not both")
	case r.Query == nil && r.UserIds == nil:
		refuse("query", `give query or user_ids; a query of "" with a limit of 0 asks for all members`)
	case r.Query != nil && r.Limit == nil:
		refuse("limit", `it is required with query: 1 to %d, or 0 for all members with a query of ""`, maxMatches)
	case r.Query != nil && *r.Query != "" && *r.Limit == 0:
		refuse("limit", `0 means all members, which needs a query of "": give 1 to %d`, maxMatches)
	}
	if r.Limit != nil && *r.Limit > maxMatches {
		refuse("limit", "%d is too many: Discord finds at most %d, or all members with a limit of 0", *r.Limit, maxMatches)
	}
	if ids := given(r.UserIds); len(ids) > maxUserIDs {
		refuse("user_ids", "%d ids are too many: Discord takes at most %d at a time", len(ids), maxUserIDs)
	} else {
		for i, id := range ids {
			if _, err := event.ParseSnowflake(id); err != nil {
				refuse(fmt.Sprintf("user_ids.%d", i), "%v", err)
			}
		}
	}
	if nonce := given(r.Nonce); len(nonce) > maxNonce {
		refuse("nonce", "it has %d bytes: Discord ignores a nonce of more than %d", len(nonce), maxNonce)
	}
	return problems
}

// needs returns the intents without which Discord would not answer a command as
// intended.
func needs(op int, d json.RawMessage) (intents event.Intents) {
	var r membersCommand
	if op != discord.OpMembers || json.Unmarshal(d, &r) != nil {
		return 0
	}
	if r.Presences {
		intents |= event.IntentGuildPresences
	}
	if r.Query != nil && *r.Query == "" && given(r.Limit) == 0 {
		intents |= event.IntentGuildMembers
	}
	return intents
}
