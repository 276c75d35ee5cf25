package listeners

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/gatehook/gatehook/internal/openapi"
)

// etag returns the entity tag of a registration: each change has another time (RFC 9110,
// section 8.8.3).
func etag(r *registration) *string {
	tag := `"` + strconv.FormatInt(r.updatedAt.UnixMicro(), 36) + `"`
	return &tag
}

// checkMatch refuses a call whose If-Match does not have the registration's entity tag
// (RFC 9110, section 13.1.1). A nil header matches.
func checkMatch(header *string, r *registration) error {
	if header == nil || strings.TrimSpace(*header) == "*" {
		return nil
	}
	for tag := range strings.SplitSeq(*header, ",") {
		if strings.TrimSpace(tag) == *etag(r) {
			return nil
		}
	}
	return &openapi.Error{
		Status: http.StatusPreconditionFailed,
		Detail: "the listener was changed since it was read: its ETag is " + *etag(r) + " now. Read it again, and repeat the call with that",
	}
}
