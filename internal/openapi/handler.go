// Package openapi is the REST contract in Go: types and routes generated from
// api/openapi.yaml, and the parts that all calls share (the key, the check
// against the contract, problem documents). Other packages implement the calls,
// as StrictServerInterface.
package openapi

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/go-chi/chi/v5"

	"github.com/gatehook/gatehook/api"
	"github.com/gatehook/gatehook/internal/secret"
)

//go:generate go tool -modfile=../tools/go.mod oapi-codegen -config config.yaml ../../api/openapi.yaml

// maxBody is the size of the largest request body, in bytes.
const maxBody = 1 << 20

// Options are the options of NewHandler.
type Options struct {
	// APIKey is the bearer key that all calls except for the open ones require. If
	// it is empty, those calls are always refused.
	APIKey secret.Value
	// Refused, if not nil, is called for each request whose key is missing or wrong.
	Refused func(*http.Request)
	Logger  *slog.Logger
}

// Contract returns api/openapi.yaml as JSON.
func Contract() json.RawMessage { return api.JSON }

// load reads the contract without the webhooks.
func load() (*openapi3.T, error) {
	doc, err := openapi3.NewLoader().LoadFromData(api.Calls())
	if err != nil {
		return nil, fmt.Errorf("read the contract: %w", err)
	}
	return doc, nil
}

// NewHandler returns a handler for the calls of the contract.
func NewHandler(server StrictServerInterface, o Options) (http.Handler, error) {
	doc, err := load()
	if err != nil {
		return nil, err
	}
	doc.Servers = nil // requests are valid under any host and base path
	r := chi.NewRouter()
	open := openPaths(doc)
	r.Use(recoverer(o.Logger), headIsGet, limitBody, authorize(o.APIKey, open, o.Refused), routed(r), knownQuery(r, doc, open), wellFormed, validate(doc))
	strict := NewStrictHandlerWithOptions(server, nil, StrictHTTPServerOptions{
		RequestErrorHandlerFunc: func(w http.ResponseWriter, _ *http.Request, err error) { requestError(err).write(w) },
		ResponseErrorHandlerFunc: func(w http.ResponseWriter, r *http.Request, err error) {
			handlerError(r.Context(), o.Logger, r, err).write(w)
		},
	})
	return HandlerWithOptions(strict, ChiServerOptions{
		BaseRouter:       r,
		ErrorHandlerFunc: func(w http.ResponseWriter, _ *http.Request, err error) { requestError(err).write(w) },
	}), nil
}

// openPaths returns the paths whose operations require no key.
func openPaths(doc *openapi3.T) map[string]bool {
	open := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		open[path] = true
		for _, op := range item.Operations() {
			open[path] = open[path] && op.Security != nil && len(*op.Security) == 0
		}
	}
	return open
}

// recoverer answers a panic with a 500 and keeps the process running.
func recoverer(log *slog.Logger) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() { //nolint:contextcheck // nothing here needs one
				p := recover()
				if p == nil {
					return
				}
				if p == http.ErrAbortHandler { //nolint:errorlint // compared as net/http itself does
					panic(p)
				}
				log.LogAttrs(r.Context(), slog.LevelError, "a request handler panicked", slog.String("path", r.URL.Path),
					slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
				internal().write(w)
			}()
			next.ServeHTTP(w, r)
		})
	}
}

func internal() *Error {
	return &Error{Status: http.StatusInternalServerError, Detail: "an internal error: see the server's log"}
}

// headIsGet answers HEAD, which uptime checks send, as GET (RFC 9110, section
// 9.3.2). net/http leaves out the body.
func headIsGet(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			r = r.WithContext(r.Context()) // a copy, since net/http still needs the method of the original
			r.Method = http.MethodGet
		}
		next.ServeHTTP(w, r)
	})
}

func limitBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		next.ServeHTTP(w, r)
	})
}

// routed answers requests that match no route. It comes before validate, which
// does not distinguish an unknown path from a method that the path does not have.
func routed(routes chi.Routes) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			path := r.URL.EscapedPath()
			if routes.Match(chi.NewRouteContext(), r.Method, path) {
				next.ServeHTTP(w, r)
				return
			}
			allowed := allowedMethods(routes, path)
			if allowed == "" {
				noPath(r).write(w)
				return
			}
			w.Header().Set("Allow", allowed)
			(&Error{
				Status: http.StatusMethodNotAllowed,
				Detail: fmt.Sprintf("%s does not support %s: use %s", cut(r.URL.Path), r.Method, allowed),
			}).write(w)
		})
	}
}

// knownQuery refuses parameters that a call does not have: one that is misspelled would be
// taken for one that was left out. The open paths take any: monitors add their own.
func knownQuery(routes chi.Routes, doc *openapi3.T, open map[string]bool) func(http.Handler) http.Handler {
	names := make(map[string][]string) // by method and pattern
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			known := []string{}
			for _, parameters := range []openapi3.Parameters{item.Parameters, op.Parameters} {
				for _, p := range parameters {
					if p.Value.In == openapi3.ParameterInQuery {
						known = append(known, p.Value.Name)
					}
				}
			}
			names[method+" "+path] = known
		}
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RawQuery == "" || open[r.URL.Path] {
				next.ServeHTTP(w, r)
				return
			}
			c := chi.NewRouteContext()
			routes.Match(c, r.Method, r.URL.EscapedPath())
			known := names[r.Method+" "+c.RoutePattern()]
			var fields []FieldProblem
			for _, name := range slices.Sorted(maps.Keys(r.URL.Query())) {
				if !slices.Contains(known, name) {
					detail := "this call has no such parameter"
					if len(known) > 0 {
						detail += "; it has " + strings.Join(known, ", ")
					}
					fields = append(fields, FieldProblem{Field: cut(name), Detail: detail})
				}
			}
			if len(fields) > 0 {
				FieldErrors(fields).write(w)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

func noPath(r *http.Request) *Error {
	return NotFound(fmt.Sprintf("there is no %s: GET /openapi.json lists all paths", cut(r.URL.Path)))
}

// allowedMethods returns the methods of a path, joined with commas; "" if there is
// no such path.
func allowedMethods(routes chi.Routes, path string) string {
	var methods []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodPut, http.MethodDelete} {
		if routes.Match(chi.NewRouteContext(), m, path) {
			methods = append(methods, m)
			if m == http.MethodGet {
				methods = append(methods, http.MethodHead) // headIsGet
			}
		}
	}
	return strings.Join(methods, ", ")
}

// authorize requires the key, which it compares in constant time.
func authorize(key secret.Value, open map[string]bool, refused func(*http.Request)) func(http.Handler) http.Handler {
	if refused == nil {
		refused = func(*http.Request) {}
	}
	want := sha256.Sum256([]byte(key.Reveal()))
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
			got := sha256.Sum256([]byte(strings.TrimSpace(given)))
			valid := strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(got[:], want[:]) == 1 && !key.Empty()
			switch {
			case valid || open[r.URL.Path]:
				next.ServeHTTP(w, r)
			case r.Header.Get("Authorization") == "":
				refused(r)
				(&Error{Status: http.StatusUnauthorized, Detail: "no API key was given: send Authorization: Bearer KEY"}).write(w)
			default:
				refused(r)
				(&Error{Status: http.StatusUnauthorized, Detail: "the API key is wrong: send this server's key as Authorization: Bearer KEY"}).write(w)
			}
		})
	}
}

// handlerError is the one place that turns a handler's error into an answer.
func handlerError(ctx context.Context, log *slog.Logger, r *http.Request, err error) *Error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return Unavailable()
	case ctx.Err() != nil:
		// The client is gone, so nobody reads this.
		return Unavailable()
	}
	log.LogAttrs(ctx, slog.LevelError, "a request failed", slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Any("error", err))
	return internal()
}
