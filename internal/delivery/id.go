package delivery

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/gatehook/gatehook/internal/event"
)

// ID identifies a delivery. It consists of stored values, so it is the same at every
// attempt and after a crash.
type ID struct {
	Key      event.Key
	Listener int64
}

const idPrefix = "dlv_"

// String returns the id as receivers see it in webhook-id. It contains no dot, because
// Standard Webhooks signs "id.timestamp.body".
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

// ParseID parses an id in the spelling of String, and refuses any other spelling.
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

// number parses a number in base 36. It returns 0 for any other text, which ParseID
// then refuses because 0 is spelled differently.
func number(s string, bits int) int64 {
	n, err := strconv.ParseInt(s, 36, bits)
	if err != nil || n < 0 {
		return 0
	}
	return n
}
