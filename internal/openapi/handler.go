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
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/go-chi/chi/v5"
	middleware "github.com/oapi-codegen/nethttp-middleware"

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
func Contract() (json.RawMessage, error) {
	doc, err := load()
	if err != nil {
		return nil, err
	}
	b, err := doc.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("encode the contract: %w", err)
	}
	return b, nil
}

func load() (*openapi3.T, error) {
	doc, err := openapi3.NewLoader().LoadFromData(api.Document)
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
	r.Use(recoverer(o.Logger), limitBody, authorize(o.APIKey, openPaths(doc)), validate(doc))
	r.NotFound(func(w http.ResponseWriter, r *http.Request) { notFound(r).write(w) })
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

func notFound(r *http.Request) *Error {
	return NotFound(fmt.Sprintf("there is no %s: GET /openapi.json lists what there is", r.URL.Path))
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

func limitBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, bodyLimit)
		next.ServeHTTP(w, r)
	})
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

// validate refuses what the contract does not allow.
func validate(doc *openapi3.T) func(http.Handler) http.Handler {
	return middleware.OapiRequestValidatorWithOptions(doc, &middleware.Options{
		Options: openapi3filter.Options{
			MultiError:         true,
			AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, // authorize has done it
		},
		DoNotValidateServers:  true,
		DiscardValidatedValue: true,
		ErrorHandlerWithOpts: func(_ context.Context, err error, w http.ResponseWriter, r *http.Request, o middleware.ErrorHandlerOpts) {
			contractError(err, o.StatusCode, doc, r, w.Header()).write(w)
		},
	})
}

// contractError says what a request lacks to keep the contract. The validator
// calls it a missing path when only the method is wrong.
func contractError(err error, status int, doc *openapi3.T, r *http.Request, h http.Header) *Error {
	if status != http.StatusNotFound && status != http.StatusMethodNotAllowed {
		return requestError(err)
	}
	allowed := allowedMethods(doc, r.URL.Path)
	if allowed == "" {
		return notFound(r)
	}
	h.Set("Allow", allowed)
	return &Error{Status: http.StatusMethodNotAllowed, Detail: fmt.Sprintf("%s is not for %s: use %s", r.Method, r.URL.Path, allowed)}
}

// allowedMethods are those of a path, joined; "" for a path that is none.
func allowedMethods(doc *openapi3.T, path string) string {
	item := doc.Paths.Find(path)
	if i := strings.LastIndexByte(path, '/'); item == nil && i > 0 {
		item = doc.Paths.Find(path[:i] + "/{id}")
	}
	if item == nil {
		return ""
	}
	var methods []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodPut, http.MethodDelete} {
		if item.GetOperation(m) != nil {
			methods = append(methods, m)
		}
	}
	return strings.Join(methods, ", ")
}

// requestError names the fields of a request that are at fault.
func requestError(err error) *Error {
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return &Error{Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit)}
	}
	var fields []FieldProblem
	collect(err, &fields)
	e := &Error{Status: http.StatusBadRequest, Fields: fields}
	for _, f := range fields {
		if f.Field == contentType {
			e.Status = http.StatusUnsupportedMediaType
		}
		e.Detail += "; " + f.Field + ": " + f.Detail
	}
	e.Detail = strings.TrimPrefix(e.Detail, "; ")
	return e
}

// contentType and body stand for a field where the fault is in no field.
const (
	contentType = "Content-Type"
	body        = "body"
)

// collect walks what the validator found.
func collect(err error, fields *[]FieldProblem) {
	add := func(field, detail string) {
		if field == "" {
			field = body
		}
		*fields = append(*fields, FieldProblem{Field: field, Detail: oneLine(detail)})
	}
	var multi openapi3.MultiError
	switch e := err.(type) { //nolint:errorlint // each layer is looked at for itself
	case openapi3.MultiError:
		multi = e
	case *openapi3filter.RequestError:
		switch {
		case e.Parameter != nil && e.Err != nil:
			var inner []FieldProblem
			collect(e.Err, &inner)
			add(e.Parameter.Name, inner[0].Detail)
		case e.Parameter != nil:
			add(e.Parameter.Name, e.Reason)
		case strings.HasPrefix(e.Reason, "header Content-Type"):
			add(contentType, "send application/json")
		case e.Err != nil:
			collect(e.Err, fields)
		default:
			add(body, e.Reason)
		}
	case *openapi3.SchemaError:
		if m, ok := e.Origin.(openapi3.MultiError); ok { //nolint:errorlint // as above
			multi = m
			break
		}
		path := e.JSONPointer()
		name, detail := strings.Join(path, "."), e.Reason
		// Of a field that is missing or unknown the name is in the text only.
		if quoted := between(detail, `property "`, `"`); quoted != "" && (len(path) == 0 || path[len(path)-1] != quoted) {
			name = strings.Join(append(path, quoted), ".")
		}
		add(name, detail)
	case *openapi3filter.ParseError:
		add(body, "it is not JSON: "+e.RootCause().Error())
	case *InvalidParamFormatError:
		add(e.ParamName, e.Err.Error())
	case *RequiredParamError:
		add(e.ParamName, "it is required")
	case *TooManyValuesForParamError:
		add(e.ParamName, "it may be given once")
	default:
		add(body, err.Error())
	}
	for _, inner := range multi {
		collect(inner, fields)
	}
}

func between(s, before, after string) string {
	_, rest, ok := strings.Cut(s, before)
	if !ok {
		return ""
	}
	found, _, _ := strings.Cut(rest, after)
	return found
}

func oneLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return strings.TrimSpace(s)
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
