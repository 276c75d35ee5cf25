package delivery

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/gatehook/gatehook/internal/event"
)

// ID names a delivery: an event for a listener. It is derived from stored values, so that it
// is the same at every attempt, and after a crash.
type ID struct {
	Key      event.Key
	Listener int64
}

const idPrefix = "dlv_"

// String returns the id as receivers see it in webhook-id. It holds no dot: Standard
// Webhooks signs "id.timestamp.body".
func (id ID) String() string {
	b := make([]byte, 0, 32)
	b = append(b, idPrefix...)
	b = strconv.AppendInt(b, id.Key.Batch, 36)
	b = append(b, '_')
	b = strconv.AppendInt(b, int64(id.Key.Ordinal), 36)
	b = append(b, '_')
	b = strconv.AppendInt(b, id.Listener, 36)
	return string(b)
}

// ParseID reads an id that String wrote, and refuses every other spelling of it.
func ParseID(s string) (ID, error) {
	var id ID
	parts := strings.Split(strings.TrimPrefix(s, idPrefix), "_")
	if strings.HasPrefix(s, idPrefix) && len(parts) == 3 {
		id.Key.Batch = number(parts[0], 64)
		id.Key.Ordinal = int32(number(parts[1], 32))
		id.Listener = number(parts[2], 64)
	}
	if id.String() != s {
		return ID{}, fmt.Errorf("%q is not the id of a delivery (dlv_…)", s)
	}
	return id, nil
}

// number reads base 36. For text that it can't read it returns a number of another spelling,
// which ParseID then refuses.
func number(s string, bits int) int64 {
	n, err := strconv.ParseInt(s, 36, bits)
	if err != nil || n < 0 {
		return 0
	}
	return n
}
