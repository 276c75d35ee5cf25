package discord_test

import (
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
)

func TestWindow(t *testing.T) {
	t.Parallel()
	at := func(seconds ...int) (list []time.Time) {
		for _, s := range seconds {
			list = append(list, time.Unix(int64(s), 0))
		}
		return list
	}
	tests := []struct {
		name string
		done []time.Time // with a limit of 5 in 10 s
		now  int
		room int
		want time.Duration
	}{
		{"nothing was done", nil, 0, 0, 0},
		{"one less than the limit", at(0, 0, 0, 0), 0, 0, 0},
		{"the limit, at once", at(0, 0, 0, 0, 0), 0, 0, 10 * time.Second},
		{"a moment before the first falls out", at(0, 1, 2, 3, 4), 9, 0, time.Second},
		{"the first falls out", at(0, 1, 2, 3, 4), 10, 0, 0},
		{"the window slides: full again after one more", at(0, 1, 2, 3, 4, 10), 10, 0, time.Second},
		{"more than the limit: the excess has to fall out too", at(0, 1, 2, 3, 4, 5, 6), 6, 0, 6 * time.Second},
		{"long ago", at(0, 0, 0, 0, 0), 100, 0, 0},
		{"room is kept: some is left", at(0, 0), 0, 2, 0},
		{"room is kept: none is left", at(0, 1, 2), 2, 2, 8 * time.Second},
		{"the room itself is used", at(0, 1, 2, 3, 4), 4, 2, 8 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := discord.Window{Length: 10 * time.Second, Limit: 5}
			for _, d := range tt.done {
				w.Add(d)
			}
			now := time.Unix(int64(tt.now), 0)
			if got := w.Wait(now, tt.room); got != tt.want {
				t.Fatalf("wait %v, want %v", got, tt.want)
			}
			if again := w.Wait(now.Add(tt.want), tt.room); again != 0 {
				t.Errorf("after that wait it is another %v, want 0", again)
			}
		})
	}
}
