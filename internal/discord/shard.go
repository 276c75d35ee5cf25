package discord

import "github.com/gatehook/gatehook/internal/event"

// MaxShards is the largest number of shards that is accepted, from Discord or
// from a user. It is far beyond the largest bot, and keeps a typo from starting
// a million goroutines.
const MaxShards = 16384

// ShardOf returns the shard that a guild is on when there are count shards, at
// least one (Discord: Sharding Formula).
func ShardOf(guild event.Snowflake, count int) event.Shard {
	return event.Shard{ID: int((uint64(guild) >> 22) % uint64(count)), Count: count}
}
