package discord_test

import (
	"testing"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
)

func TestShardOf(t *testing.T) {
	t.Parallel()
	// Discord: Sharding Formula.
	tests := []struct {
		guild event.Snowflake
		count int
		want  int
	}{
		{197038439483310086, 1, 0},
		{197038439483310086, 10, 0},
		{197038439483310086, 16, 2},
		{1 << 22, 2, 1},
		{1<<22 - 1, 2, 0},
		{1<<63 - 1, 16384, 16383},
	}
	for _, tt := range tests {
		if got := discord.ShardOf(tt.guild, tt.count); got != (event.Shard{ID: tt.want, Count: tt.count}) {
			t.Errorf("guild %v of %d shards is on %v, want %d", tt.guild, tt.count, got, tt.want)
		}
	}
}
