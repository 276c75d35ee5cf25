package openapi

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Error is an unsuccessful answer. A handler returns it as its error. Any other error
// of a handler is answered as an internal error, and its text appears only in the
// log.
type Error struct {
	Status int
	// Detail says in one line what is wrong, with which value, and what to do.
	Detail string
	// Fields are the fields at fault.
	Fields []FieldProblem
	// ListenerID is the existing listener that conflicts with a new one.
	ListenerID string
	// RetryAfter is how long to wait before trying again; 0 leaves out the header.
	RetryAfter time.Duration
	// Reasons are the reasons why the server is not ready.
	Reasons []string
}

func (e *Error) Error() string { return e.Detail }

// FieldError is a 400 for one field.
func FieldError(field, detail string) *Error {
	return FieldErrors([]FieldProblem{{Field: field, Detail: detail}})
}

// FieldErrors is a 400 for at least one field. It names only the first
// maxFields, and cuts long texts, so that a request can't make the answer large.
func FieldErrors(fields []FieldProblem) *Error {
	e := &Error{Status: http.StatusBadRequest}
	for _, f := range fields[:min(len(fields), maxFields)] {
		f.Field, f.Detail = cut(f.Field), cut(f.Detail)
		e.Fields = append(e.Fields, f)
		e.Detail += "; " + f.Field + ": " + f.Detail
	}
	e.Detail = strings.TrimPrefix(e.Detail, "; ")
	if more := len(fields) - maxFields; more > 0 {
		e.Detail += fmt.Sprintf("; and %d more", more)
	}
	return e
}

const (
	maxFields = 20
	maxText   = 300 // bytes
)

// cut shortens a text to maxText.
func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + "…"
}

// NotFound is a 404.
func NotFound(detail string) *Error { return &Error{Status: http.StatusNotFound, Detail: detail} }

// Unavailable is a 503 for a database that does not answer.
func Unavailable() *Error {
	return &Error{
		Status: http.StatusServiceUnavailable, RetryAfter: 2 * time.Second,
		Detail: "the database does not answer at the moment: try again",
	}
}

// Problem returns the error as a problem document (RFC 9457).
func (e *Error) Problem() Problem {
	p := Problem{Type: "about:blank", Title: http.StatusText(e.Status), Status: e.Status, Detail: e.Detail}
	if len(e.Fields) > 0 {
		p.Field, p.Errors = &e.Fields[0].Field, &e.Fields
	}
	if e.ListenerID != "" {
		p.ListenerId = &e.ListenerID
	}
	if len(e.Reasons) > 0 {
		p.Reasons = &e.Reasons
	}
	return p
}

// Refuse answers a request with an error, as the API does.
func Refuse(w http.ResponseWriter, e *Error) { e.write(w) }

// write answers with the problem document.
func (e *Error) write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("X-Content-Type-Options", "nosniff")
	switch {
	case e.Status == http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer realm="gatehook"`)
	case e.ListenerID != "":
		h.Set("Location", "/listeners/"+e.ListenerID)
	case e.RetryAfter > 0:
		// Rounded up: a client that tries again a moment too early is refused again.
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	}
	w.WriteHeader(e.Status)
	// Fails only if the client is gone.
	_ = json.NewEncoder(w).Encode(e.Problem()) //nolint:errchkjson // every type in it can be encoded
}
