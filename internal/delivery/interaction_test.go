package delivery

import (
	"slices"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

func TestTimeoutOfInteractions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name        string
		usual, want time.Duration
	}{
		{"INTERACTION_CREATE", 15 * time.Second, interactionTimeout},
		{"INTERACTION_CREATE", time.Second, time.Second},
		{"MESSAGE_CREATE", 15 * time.Second, 15 * time.Second},
	} {
		if got := timeoutOf(&event.Event{Name: tt.name}, tt.usual); got != tt.want {
			t.Errorf("%s, %v: %v", tt.name, tt.usual, got)
		}
	}
}

// TestInteractionsGoFirst: an interaction does not wait behind earlier events, but does
// not overtake another interaction.
func TestInteractionsGoFirst(t *testing.T) {
	t.Parallel()
	var q queue
	for i, name := range []string{"MESSAGE_CREATE", interaction, "MESSAGE_CREATE", interaction, "READY"} {
		q.push(job{stored: &event.Stored{Event: event.Event{Name: name, Seq: int64(i)}}})
	}
	var order []int64
	for q.len() > 0 {
		order = append(order, q.pop().stored.Seq)
	}
	if want := []int64{1, 3, 0, 2, 4}; !slices.Equal(order, want) {
		t.Errorf("the order is %v, want %v", order, want)
	}
}
