package gateway

import (
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
)

// TestLoading: each guild that comes renews the patience, up to a bound.
func TestLoading(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		guilds  int
		every   time.Duration // how long each guild takes
		come    int
		after   time.Duration // when the session counts as complete
		missing []event.Snowflake
	}{
		{"all come", 3, time.Second, 3, 3 * time.Second, []event.Snowflake{}},
		{"all come, slowly", 5, 10 * time.Second, 5, 50 * time.Second, []event.Snowflake{}},
		{"there are none", 0, time.Second, 0, 0, []event.Snowflake{}},
		{"one does not come", 3, 10 * time.Second, 2, 35 * time.Second, []event.Snowflake{3}},
		{"none comes", 2, 0, 0, 15 * time.Second, []event.Snowflake{1, 2}},
		{"they never end", 100, 14 * time.Second, 100, 2 * time.Minute, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				l := newLoading()
				guilds := make([]discord.Guild, tt.guilds)
				for i := range guilds {
					guilds[i].ID = []byte(`"` + strconv.Itoa(i+1) + `"`)
				}
				l.expect(guilds)
				stop := make(chan struct{})
				defer close(stop)
				go func() {
					for i := range tt.come {
						select {
						case <-time.After(tt.every):
							l.note(&event.Event{Name: "GUILD_CREATE", GuildID: event.Snowflake(i + 1)})
						case <-stop:
							return
						}
					}
				}()
				missing := l.watch(t.Context(), usualTiming.load, usualTiming.loadBound)
				if took := time.Since(began); took != tt.after || !isClosed(l.settled) {
					t.Errorf("complete after %v, want %v", took, tt.after)
				}
				if tt.missing != nil && !slices.Equal(missing, tt.missing) {
					t.Errorf("missing %v, want %v", missing, tt.missing)
				}
			})
		})
	}
}
