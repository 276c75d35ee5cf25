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

// Error is an answer that is not a success. A handler returns it as its error;
// whatever else a handler returns is answered as an internal error, and its
// text stays in the log.
type Error struct {
	Status int
	// Detail says in one line what is wrong, with what value, and what to do.
	Detail string
	// Fields are the ones at fault.
	Fields []FieldProblem
	// ListenerID is the listener that is in the way of a new one.
	ListenerID string
	// RetryAfter is when to try again; 0 for not.
	RetryAfter time.Duration
	// Reasons are why the server is not ready.
	Reasons []string
}

func (e *Error) Error() string { return e.Detail }

// FieldError is a 400 for one field.
func FieldError(field, detail string) *Error {
	return FieldErrors([]FieldProblem{{Field: field, Detail: detail}})
}

// FieldErrors is a 400 for at least one field. Of many only the first are
// told, and of a long text its beginning: what a client sends must not decide
// how large the answer is.
func FieldErrors(fields []FieldProblem) *Error {
	e := &Error{Status: http.StatusBadRequest}
	for _, f := range fields[:min(len(fields), mostFields)] {
		f.Field, f.Detail = cut(f.Field), cut(f.Detail)
		e.Fields = append(e.Fields, f)
		e.Detail += "; " + f.Field + ": " + f.Detail
	}
	e.Detail = strings.TrimPrefix(e.Detail, "; ")
	if more := len(fields) - mostFields; more > 0 {
		e.Detail += fmt.Sprintf("; and %d more", more)
	}
	return e
}

const (
	mostFields = 20
	longest    = 300 // bytes
)

// cut shortens a text that is too long to be shown.
func cut(s string) string {
	if len(s) <= longest {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "") + "…"
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

// Problem is the document that says so (RFC 9457).
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
		// Rounded up: who comes back a moment too early is sent away again.
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	}
	w.WriteHeader(e.Status)
	// The header is out: a client that has gone away is nobody's problem.
	_ = json.NewEncoder(w).Encode(e.Problem()) //nolint:errchkjson // has no type that can't be encoded
}
