package delivery

import (
	"regexp"
	"testing"

	"github.com/google/uuid"
)

// TestTraceparent: all attempts of an event are in one trace, each under a
// parent of its own.
func TestTraceparent(t *testing.T) {
	t.Parallel()
	form := regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-00$`)
	one, other := uuid.MustParse("6f1f8b0a-3c1d-8e2f-a1b2-c3d4e5f60718"), uuid.MustParse("7f1f8b0a-3c1d-8e2f-a1b2-c3d4e5f60718")
	first, second, third := form.FindStringSubmatch(traceparent(one)), form.FindStringSubmatch(traceparent(one)), form.FindStringSubmatch(traceparent(other))
	if first == nil || second == nil || third == nil {
		t.Fatalf("%q, want the form %v", traceparent(one), form)
	}
	if first[1] != "6f1f8b0a3c1d8e2fa1b2c3d4e5f60718" || second[1] != first[1] || third[1] == first[1] {
		t.Errorf("traces %s, %s and %s", first[1], second[1], third[1])
	}
	if first[2] == second[2] || first[2] == "0000000000000000" {
		t.Errorf("parents %s and %s", first[2], second[2])
	}
}
