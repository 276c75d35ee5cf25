package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/gatehook/gatehook/internal/discord"
)

func closed(code websocket.StatusCode) error {
	return fmt.Errorf("read: %w", websocket.CloseError{Code: code, Reason: "whatever"})
}

func TestDecide(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		end    ending
		before int
		course discord.Course
		failed int
	}{
		{"nothing to resume", ending{cause: io.EOF, greeted: true}, 0, discord.CourseIdentify, 0},
		{"nothing to resume, no socket", ending{cause: io.EOF}, 2, discord.CourseIdentify, 0},
		{"fatal without a session", ending{cause: closed(4014), greeted: true}, 0, discord.CourseStop, 0},
		{"drop", ending{cause: io.EOF, session: true, greeted: true, progress: true}, 2, discord.CourseResume, 0},
		{"drop before RESUMED", ending{cause: io.EOF, session: true, greeted: true}, 0, discord.CourseResume, 1},
		{"second one", ending{cause: closed(1006), session: true, greeted: true}, 1, discord.CourseResume, 2},
		{"third one", ending{cause: io.EOF, session: true, greeted: true}, 2, discord.CourseIdentify, 0},
		{"a skip after failures", ending{cause: discord.ErrDefect, session: true, greeted: true, skipped: true}, 2, discord.CourseResume, 2},
		{"a skip after progress", ending{cause: discord.ErrDefect, session: true, greeted: true, skipped: true, progress: true}, 2, discord.CourseResume, 0},
		{"drop in mid-replay", ending{cause: io.EOF, session: true, greeted: true, progress: true}, 2, discord.CourseResume, 0},
		{"network down", ending{cause: io.EOF, session: true}, 2, discord.CourseResume, 2},
		{"no HELLO", ending{cause: errNoHello, session: true, opened: true}, 2, discord.CourseResume, 2},
		{"op 7", ending{cause: errReconnect, session: true, greeted: true, progress: true}, 0, discord.CourseResume, 0},
		{"op 7 before RESUMED", ending{cause: errReconnect, session: true, greeted: true}, 0, discord.CourseResume, 1},
		{"op 7 instead of HELLO", ending{cause: errReconnect, session: true, opened: true}, 2, discord.CourseResume, 2},
		{"op 9 true", ending{cause: errTryResume, session: true, greeted: true}, 0, discord.CourseResume, 1},
		{"op 9 true for ever", ending{cause: errTryResume, session: true, greeted: true}, 2, discord.CourseIdentify, 0},
		{"op 9 false", ending{cause: errInvalid, session: true, greeted: true}, 0, discord.CourseIdentify, 0},
		{"op 9 false of a live session", ending{cause: errInvalid, session: true, greeted: true, progress: true}, 0, discord.CourseIdentify, 0},
		{"op 9 for an IDENTIFY", ending{cause: errInvalid, greeted: true}, 0, discord.CourseIdentify, 0},
		{"zombie", ending{cause: errZombie, session: true, greeted: true, progress: true}, 0, discord.CourseResume, 0},
		{"4000", ending{cause: closed(4000), session: true, greeted: true, progress: true}, 0, discord.CourseResume, 0},
		{"4009", ending{cause: closed(4009), session: true, greeted: true, progress: true}, 0, discord.CourseIdentify, 0},
		{"4004", ending{cause: closed(4004), session: true, greeted: true, progress: true}, 0, discord.CourseStop, 0},
		{"1000", ending{cause: closed(1000), session: true, greeted: true, progress: true}, 0, discord.CourseResume, 0},
		{"no code", ending{cause: closed(websocket.StatusNoStatusRcvd), session: true, greeted: true, progress: true}, 0, discord.CourseResume, 0},
		{"defect", ending{cause: fmt.Errorf("%w: x", discord.ErrDefect), session: true, greeted: true}, 1, discord.CourseResume, 2},
	}
	for _, tt := range tests {
		course, failed := decide(tt.end, tt.before)
		if course != tt.course || failed != tt.failed {
			t.Errorf("%s: %v with %d failed, want %v with %d", tt.name, course, failed, tt.course, tt.failed)
		}
	}
}

func TestInvalidWait(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{errInvalid, errTryResume} {
		if low, high := invalidWait(cause, time.Second, 0), invalidWait(cause, time.Second, 0.999999); low != time.Second || high < 4990*time.Millisecond || high > 5*time.Second {
			t.Errorf("%v: %v to %v, want 1 to 5 s", cause, low, high)
		}
	}
	if d := invalidWait(errReconnect, time.Second, 0.5); d != 0 {
		t.Errorf("%v: %v", errReconnect, d)
	}
}

func TestCloseText(t *testing.T) {
	t.Parallel()
	tests := []struct {
		cause        error
		code         int
		text, metric string
	}{
		{closed(4009), 4009, "session timed out", "4009"},
		{closed(4321), 4321, "closed with code 4321", "other_code"},
		{closed(websocket.StatusNoStatusRcvd), 1006, "the connection broke", "network"},
		{errors.New("read tcp 10.1.2.3:443: reset"), 1006, "the connection broke", "network"},
		{context.DeadlineExceeded, 1006, "the connection broke", "network"},
		{errZombie, 4900, "no heartbeat was acknowledged", "zombie"},
		{fmt.Errorf("%w: invalid character", discord.ErrDefect), 4900, "a message from Discord could not be understood", "defect"},
		{errDrain, 4900, "this server is shutting down", "shutdown"},
	}
	for _, tt := range tests {
		code, text := closeText(tt.cause)
		if code != tt.code || text != tt.text {
			t.Errorf("%v: %d %q", tt.cause, code, text)
		}
		if got := reconnectReason(tt.cause); got != tt.metric {
			t.Errorf("%v: metric %q, want %q", tt.cause, got, tt.metric)
		}
	}
	for _, local := range localCauses {
		if len(local.err.Error()) > 123 {
			t.Errorf("%q does not fit into a close frame", local.err)
		}
	}
}
