package gateway

import (
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// Events count as received by the clock that all servers share, the dispatches and the
// notices alike, so that a plan's times and another server's can be compared with them.
func TestEventsAreReceivedByTheSharedClock(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	shared := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	r.cfg.Now = func() time.Time { return shared }
	r.start()
	r.ready(0)
	r.dispatch(0, 0, 3)
	for _, e := range r.messages(3) {
		if !e.ReceivedAt.Equal(shared) {
			t.Errorf("%s was received at %v", e.Name, e.ReceivedAt)
		}
	}
}
