// Package openapi is the REST contract as Go: types and routes generated from
// api/openapi.yaml, and around them what every call shares (the key, the
// check against the contract, problem documents). What the calls do is the
// business of the packages that implement StrictServerInterface.
package openapi

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/go-chi/chi/v5"

	"github.com/gatehook/gatehook/api"
	"github.com/gatehook/gatehook/internal/secret"
)

//go:generate go tool -modfile=../tools/go.mod oapi-codegen -config config.yaml ../../api/openapi.yaml

// bodyLimit is the largest request body, in bytes.
const bodyLimit = 1 << 20

// Options of NewHandler.
type Options struct {
	// APIKey is the bearer key that all but the open calls ask for.
	APIKey secret.Value
	Logger *slog.Logger
}

// Contract returns api/openapi.yaml as JSON.
func Contract() json.RawMessage { return api.JSON }

// load reads the part of the contract that is about calls.
func load() (*openapi3.T, error) {
	doc, err := openapi3.NewLoader().LoadFromData(api.Calls())
	if err != nil {
		return nil, fmt.Errorf("read the contract: %w", err)
	}
	return doc, nil
}

// NewHandler serves the calls of the contract.
func NewHandler(server StrictServerInterface, o Options) (http.Handler, error) {
	doc, err := load()
	if err != nil {
		return nil, err
	}
	doc.Servers = nil // it is served wherever it is
	r := chi.NewRouter()
	r.Use(recoverer(o.Logger), headIsGet, limitBody, authorize(o.APIKey, openPaths(doc)), routed(r), wellFormed, validate(doc))
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

// openPaths are those whose operations ask for no key.
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

// recoverer answers a panic with a 500 and keeps the process.
func recoverer(log *slog.Logger) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() { //nolint:contextcheck // what it calls needs none
				p := recover()
				if p == nil {
					return
				}
				if p == http.ErrAbortHandler { //nolint:errorlint // net/http's own sentinel, compared as it does
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
	return &Error{Status: http.StatusInternalServerError, Detail: "something went wrong here: the server's log says what"}
}

// headIsGet lets HEAD ask what GET would answer (RFC 9110, section 9.1), as
// uptime checks do. net/http leaves out the body.
func headIsGet(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			r = r.WithContext(r.Context()) // a copy: net/http looks at the one that it made
			r.Method = http.MethodGet
		}
		next.ServeHTTP(w, r)
	})
}

func limitBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, bodyLimit)
		next.ServeHTTP(w, r)
	})
}

// routed answers what no route is for. It comes before validate, which knows
// no difference between a path that is none and a method that is not for it.
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
				Detail: fmt.Sprintf("%s is not for %s: use %s", r.Method, cut(r.URL.Path), allowed),
			}).write(w)
		})
	}
}

func noPath(r *http.Request) *Error {
	return NotFound(fmt.Sprintf("there is no %s: GET /openapi.json lists what there is", cut(r.URL.Path)))
}

// allowedMethods are those of a path, joined; "" for a path that is none.
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

// authorize asks for the key, compared in constant time.
func authorize(key secret.Value, open map[string]bool) func(http.Handler) http.Handler {
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
				(&Error{Status: http.StatusUnauthorized, Detail: "no API key was given: send Authorization: Bearer KEY"}).write(w)
			default:
				(&Error{Status: http.StatusUnauthorized, Detail: "the API key is not the one of this server: send Authorization: Bearer KEY"}).write(w)
			}
		})
	}
}

// handlerError is the one place that turns an error into an answer.
func handlerError(ctx context.Context, log *slog.Logger, r *http.Request, err error) *Error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return Unavailable()
	case ctx.Err() != nil:
		// The client has gone away; nobody reads this.
		return Unavailable()
	}
	log.LogAttrs(ctx, slog.LevelError, "a request failed", slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Any("error", err))
	return internal()
}
