package openapi

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/go-json-experiment/json/jsontext"
	middleware "github.com/oapi-codegen/nethttp-middleware"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
)

const jsonType = "application/json"

// wellFormed refuses a body that is not exactly one JSON value. Later decoders would
// hide such mistakes: they stop after the first value, keep the last of two members
// with the same name, and replace bytes that are not UTF-8.
func wellFormed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != jsonType {
			next.ServeHTTP(w, r) // validate refuses it for calls that take a body
			return
		}
		if coding := r.Header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
			w.Header().Set("Accept-Encoding", "identity") // RFC 9110, section 15.5.16
			e := FieldError("Content-Encoding", fmt.Sprintf("%q is not supported: send the body unencoded", coding))
			e.Status = http.StatusUnsupportedMediaType
			e.write(w)
			return
		}
		b, err := io.ReadAll(r.Body)
		if err != nil {
			requestError(err).write(w)
			return
		}
		if e := syntaxError(b); e != nil {
			e.write(w)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(b))
		next.ServeHTTP(w, r)
	})
}

// syntaxError returns an error that says where a body is not JSON, or nil. It leaves
// an empty body to validate.
func syntaxError(b []byte) *Error {
	if len(b) == 0 {
		return nil
	}
	d := jsontext.NewDecoder(bytes.NewBuffer(b))
	err := d.SkipValue()
	if err == nil {
		end := d.InputOffset()
		switch _, err = d.ReadToken(); {
		case errors.Is(err, io.EOF):
			return nil
		case err == nil:
			return FieldError(body, "there is more after the JSON value that ends at "+position(b, end))
		}
	}
	var syntax *jsontext.SyntacticError
	switch {
	case !errors.As(err, &syntax):
		return FieldError(body, "there is no JSON value in it")
	case errors.Is(err, jsontext.ErrDuplicateName):
		name := strings.Join(slices.Collect(syntax.JSONPointer.Tokens()), ".")
		return FieldError(cmp.Or(name, body), fmt.Sprintf("the name %q is given twice", syntax.JSONPointer.LastToken()))
	default:
		return FieldError(body, fmt.Sprintf("it is not JSON at %s: %v", position(b, syntax.ByteOffset), syntax.Err))
	}
}

// position returns an offset as a line and a column, as an editor shows it.
func position(b []byte, offset int64) string {
	before := b[:min(offset, int64(len(b)))]
	line := before[bytes.LastIndexByte(before, '\n')+1:]
	return fmt.Sprintf("line %d, column %d", bytes.Count(before, []byte{'\n'})+1, utf8.RuneCount(line)+1)
}

// validate refuses requests that the contract does not allow.
func validate(doc *openapi3.T) func(http.Handler) http.Handler {
	return middleware.OapiRequestValidatorWithOptions(doc, &middleware.Options{
		Options: openapi3filter.Options{
			MultiError:          true,
			SkipSettingDefaults: true,                                  // otherwise null passes for fields with a default
			AuthenticationFunc:  openapi3filter.NoopAuthenticationFunc, // authorize has checked the key
			// The library's own pattern accepts the 30th of February, which Go's
			// decoder later refuses without naming the field.
			SchemaValidationOptions: []openapi3.SchemaValidationOption{
				openapi3.WithStringFormatValidator("date-time", openapi3.NewCallbackValidator(dateTime)),
			},
		},
		DoNotValidateServers:  true,
		DiscardValidatedValue: true,
		ErrorHandlerWithOpts: func(_ context.Context, err error, w http.ResponseWriter, r *http.Request, o middleware.ErrorHandlerOpts) {
			if o.MatchedRoute == nil { // the library's router may not agree with routed
				noPath(r).write(w)
				return
			}
			requestError(err).write(w)
		},
	})
}

// dateTime refuses the times that Go's decoder refuses.
func dateTime(s string) error {
	if new(time.Time).UnmarshalText([]byte(s)) != nil {
		return errors.New("write it as 2026-11-24T09:30:00Z (RFC 3339)")
	}
	return nil
}

// requestError returns the answer to an invalid request, with the fields at fault.
func requestError(err error) *Error {
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return &Error{Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit)}
	}
	// validate accepts a whole number written as 16.0 or 1e2, but Go's decoder does
	// not.
	if number := (*json.UnmarshalTypeError)(nil); errors.As(err, &number) {
		return FieldError(number.Field, number.Value+" is not accepted: write it without a point or an exponent")
	}
	var fields []FieldProblem
	collect(err, &fields)
	e := FieldErrors(fields)
	if slices.ContainsFunc(fields, func(f FieldProblem) bool { return f.Field == contentType }) {
		e.Status = http.StatusUnsupportedMediaType
	}
	return e
}

// contentType and body take the place of a field when no field is at fault.
const (
	contentType = "Content-Type"
	body        = "body"
)

// collect appends the errors that the validator found.
func collect(err error, fields *[]FieldProblem) {
	add := func(field, detail string) {
		if field == "" {
			field = body
		}
		*fields = append(*fields, FieldProblem{Field: field, Detail: oneLine(detail)})
	}
	var multi openapi3.MultiError
	switch e := err.(type) { //nolint:errorlint // every layer is handled separately
	case openapi3.MultiError:
		multi = e
	case *openapi3filter.RequestError:
		unread := (*openapi3filter.ParseError)(nil)
		switch {
		case e.Parameter != nil && errors.As(e.Err, &unread):
			add(e.Parameter.Name, unread.Error())
		case e.Parameter != nil && e.Err != nil:
			var inner []FieldProblem
			collect(e.Err, &inner)
			add(e.Parameter.Name, inner[0].Detail)
		case e.Parameter != nil:
			add(e.Parameter.Name, e.Reason)
		case strings.HasPrefix(e.Reason, "header Content-Type"):
			add(contentType, "send "+jsonType)
		case e.Err != nil:
			collect(e.Err, fields)
		default:
			add(body, e.Reason)
		}
	case *openapi3.SchemaError:
		if failed := (*jsonschema.ValidationError)(nil); errors.As(e, &failed) {
			collectFailed(failed, add)
			break
		}
		if m, ok := e.Origin.(openapi3.MultiError); ok { //nolint:errorlint // as above
			multi = m
			break
		}
		path := e.JSONPointer()
		name, detail := strings.Join(path, "."), e.Reason
		// Only the text contains the name of a missing or unknown field.
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
		add(e.ParamName, "it may be given only once")
	default:
		add(body, err.Error())
	}
	for _, inner := range multi {
		collect(inner, fields)
	}
}

// collectFailed adds the errors of the validator's second engine, which checks the
// schemas that refer to no others. These errors form a tree; its leaves name the
// problems.
func collectFailed(e *jsonschema.ValidationError, add func(field, detail string)) {
	for _, cause := range e.Causes {
		collectFailed(cause, add)
	}
	if len(e.Causes) > 0 {
		return
	}
	inside := func(name string) string { return strings.Join(append(slices.Clone(e.InstanceLocation), name), ".") }
	switch k := e.ErrorKind.(type) {
	case *kind.Required:
		for _, name := range k.Missing {
			add(inside(name), "it is required")
		}
	case *kind.AdditionalProperties:
		for _, name := range k.Properties {
			add(inside(name), "there is no such field")
		}
	default:
		add(strings.Join(e.InstanceLocation, "."), e.BasicOutput().Error.String())
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
