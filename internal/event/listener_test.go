package event

import "testing"

func TestOrderKey(t *testing.T) {
	t.Parallel()
	full := Event{GuildID: 1, ChannelID: 2, UserID: 3, Shard: Shard{4, 5}}
	tests := []struct {
		o    Ordering
		e    Event
		want string
	}{
		{OrderingNone, full, ""},
		{"", full, ""},
		{OrderingGuild, full, "g1"},
		{OrderingChannel, full, "c2"},
		{OrderingChannel, Event{GuildID: 1}, "g1"},
		{OrderingGuild, Event{ChannelID: 2, UserID: 3}, "c2"},
		{OrderingGuild, Event{UserID: 3}, "u3"},
		{OrderingGuild, Event{Shard: Shard{4, 5}}, "s4/5"},
	}
	for _, tt := range tests {
		if got := OrderKey(tt.o, &tt.e); got != tt.want {
			t.Errorf("OrderKey(%q, %+v) = %q, want %q", tt.o, tt.e, got, tt.want)
		}
	}
}
