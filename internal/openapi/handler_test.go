package openapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"go.uber.org/goleak"

	"github.com/gatehook/gatehook/api"
	"github.com/gatehook/gatehook/internal/openapi"
	"github.com/gatehook/gatehook/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const key = "gk_test"

// stub implements the calls that the tests need; all others panic.
type stub struct {
	openapi.StrictServerInterface
	created *openapi.ListenerCreate
	fail    func(context.Context) error
}

func (s *stub) CreateListener(_ context.Context, r openapi.CreateListenerRequestObject) (openapi.CreateListenerResponseObject, error) {
	s.created = r.Body
	return openapi.CreateListener201JSONResponse{}, nil
}

func (s *stub) UpdateListener(context.Context, openapi.UpdateListenerRequestObject) (openapi.UpdateListenerResponseObject, error) {
	return openapi.UpdateListener200JSONResponse{}, nil
}

func (s *stub) GetListener(_ context.Context, r openapi.GetListenerRequestObject) (openapi.GetListenerResponseObject, error) {
	return openapi.GetListener200JSONResponse{Body: openapi.Listener{Id: r.Id}}, nil
}

func (s *stub) ListShards(ctx context.Context, _ openapi.ListShardsRequestObject) (openapi.ListShardsResponseObject, error) {
	return nil, s.fail(ctx)
}

func (s *stub) GetHealth(context.Context, openapi.GetHealthRequestObject) (openapi.GetHealthResponseObject, error) {
	return openapi.GetHealth200JSONResponse{Status: openapi.Ok}, nil
}

func handler(t testing.TB, s *stub, log io.Writer) http.Handler {
	t.Helper()
	h, err := openapi.NewHandler(s, openapi.Options{APIKey: secret.New(key), Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// problem makes a call with the key and reads the problem document.
func problem(t testing.TB, h http.Handler, req *http.Request) (*httptest.ResponseRecorder, openapi.Problem) {
	t.Helper()
	req.Header.Set("Authorization", "Bearer "+key)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	var p openapi.Problem
	if w.Code < 400 {
		return w, p
	}
	d := json.NewDecoder(bytes.NewReader(w.Body.Bytes()))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil || w.Header().Get("Content-Type") != "application/problem+json" ||
		p.Status != w.Code || p.Type == "" || p.Title == "" || p.Detail == "" || strings.Contains(p.Detail, "\n") {
		t.Errorf("%s %s: no problem document: %v: %d %s", req.Method, req.URL, err, w.Code, w.Body)
	}
	return w, p
}

func post(t testing.TB, body string) *http.Request {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/listeners", strings.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	return req
}

func field(p openapi.Problem) string {
	if p.Field == nil {
		return ""
	}
	return *p.Field
}

func TestBodies(t *testing.T) {
	t.Parallel()
	const good = `{"event":"READY","url":"https://e.com"}`
	tests := []struct {
		name, body string
		status     int
		field      string
		says       string
	}{
		{"good", good, 201, "", ""},
		{"white space around it", "\n " + good + "\r\n", 201, "", ""},
		{"empty", ``, 400, "body", "required"},
		{"white space only", ` `, 400, "body", "no JSON value"},
		{"cut off", `{"event":"READY"`, 400, "body", "line 1, column 17"},
		{"bad token", "{\n\"event\":\"READY\",\n  bad}", 400, "body", "line 3, column 3"},
		{"column in letters", `{"é":bad}`, 400, "body", "line 1, column 6"},
		{"comma at the end", `{"event":"READY",}`, 400, "body", "line 1, column 17"},
		{"two values", good + good, 400, "body", "line 1, column 40"},
		{"more after it", good + ` x`, 400, "body", "line 1, column 41"},
		{"byte order mark", "\ufeff" + good, 400, "body", "line 1, column 1"},
		{"not UTF-8", "{\"event\":\"\xff\"}", 400, "body", "UTF-8"},
		{"half a surrogate pair", `{"event":"\ud800"}`, 400, "body", "line 1"},
		{"a name twice", `{"event":"READY","url":"https://e.com","event":"RESUMED"}`, 400, "event", "twice"},
		{"a name twice inside", `{"event":"READY","url":"https://e.com","headers":{"a":"1","a":"2"}}`, 400, "headers.a", "twice"},
		{"no name twice", `{"":1,"":1}`, 400, "body", `"" is given twice`},
		{"no name", `{"":1,"event":"READY","url":"https://e.com"}`, 400, "body", ""},
		{"another case", `{"Event":"READY","event":"READY","url":"https://e.com"}`, 400, "Event", ""},
		{"unknown", `{"event":"READY","url":"https://e.com","a\nb":1}`, 400, `a\nb`, ""},
		{"null", `{"event":null,"url":"https://e.com"}`, 400, "event", ""},
		{"null for a field with a default", `{"event":"READY","url":"https://e.com","max_in_flight":null}`, 400, "max_in_flight", ""},
		{"an integer as a fraction", `{"event":"READY","url":"https://e.com","max_in_flight":16.0}`, 400, "max_in_flight", "16.0"},
		{"an integer with an exponent", `{"event":"READY","url":"https://e.com","max_in_flight":1e1}`, 400, "max_in_flight", "1e1"},
		{"deep", strings.Repeat("[", 100_000), 400, "body", "depth"},
		{"large", `{"event":"` + strings.Repeat("A", 1<<20) + `"}`, 413, "", "1048576"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := &stub{}
			w, p := problem(t, handler(t, s, t.Output()), post(t, tt.body))
			if w.Code != tt.status || field(p) != tt.field || !strings.Contains(p.Detail, tt.says) {
				t.Errorf("%d, field %q: %s; want %d, %q, %q in it", w.Code, field(p), p.Detail, tt.status, tt.field, tt.says)
			}
			if (s.created != nil) != (tt.status == http.StatusCreated) {
				t.Errorf("the handler got %+v", s.created)
			}
		})
	}
}

// TestParameters checks the errors for schemas that refer to no others, which the
// validator's second engine checks.
func TestParameters(t *testing.T) {
	t.Parallel()
	for query, says := range map[string]string{
		"limit=0": "minimum: got 0, want 1", "limit=251": "maximum: got 251, want 250",
		"limit=many":                       "value many: an invalid integer: invalid syntax",
		"url=" + strings.Repeat("a", 2049): "maxLength: got 2,049, want 2,048",
	} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/listeners?"+query, http.NoBody)
		w, p := problem(t, handler(t, &stub{}, t.Output()), req)
		name, _, _ := strings.Cut(query, "=")
		if w.Code != http.StatusBadRequest || field(p) != name || p.Detail != name+": "+says {
			t.Errorf("%.20s: %d, field %q: %s; want %q", query, w.Code, field(p), p.Detail, says)
		}
	}
}

// TestRetryAfter checks that the header has whole seconds, rounded up.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for wait, want := range map[time.Duration]string{time.Millisecond: "1", time.Second: "1", 1500 * time.Millisecond: "2"} {
		s := &stub{fail: func(context.Context) error {
			return &openapi.Error{Status: http.StatusTooManyRequests, Detail: "slower", RetryAfter: wait}
		}}
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/shards", http.NoBody)
		if w, _ := problem(t, handler(t, s, t.Output()), req); w.Header().Get("Retry-After") != want {
			t.Errorf("%v: Retry-After is %q, want %q", wait, w.Header().Get("Retry-After"), want)
		}
	}
}

// TestTimes checks that the error names the field even if the value only looks
// like a time.
func TestTimes(t *testing.T) {
	t.Parallel()
	for _, since := range []string{"yesterday", "2026-11-24", "2026-11-24T09:30:00", "2026-02-30T09:30:00Z", "2026-11-24T09:30:60Z", "2026-11-24T09:30:00+25:00"} {
		req := post(t, fmt.Sprintf(`{"since":%q}`, since))
		req.URL.Path = "/listeners/lst_1/replay"
		w, p := problem(t, handler(t, &stub{}, t.Output()), req)
		if w.Code != http.StatusBadRequest || field(p) != "since" || !strings.Contains(p.Detail, since) || !strings.Contains(p.Detail, "RFC 3339") {
			t.Errorf("%s: %d, field %q: %s", since, w.Code, field(p), p.Detail)
		}
	}
}

func TestContentEncoding(t *testing.T) {
	t.Parallel()
	for coding, want := range map[string]int{"": 201, "identity": 201, "gzip": 415, "br": 415} {
		req := post(t, `{"event":"READY","url":"https://e.com"}`)
		req.Header.Set("Content-Encoding", coding)
		if w, p := problem(t, handler(t, &stub{}, t.Output()), req); w.Code != want || want == 415 && field(p) != "Content-Encoding" {
			t.Errorf("%q: %d %+v, want %d", coding, w.Code, p, want)
		}
	}
}

func TestContentTypes(t *testing.T) {
	t.Parallel()
	for contentType, want := range map[string]int{
		"application/json": 201, "application/json; charset=utf-8": 201, "application/JSON": 201,
		"": 415, "text/plain": 415, "application/x-www-form-urlencoded": 415, "application/json-patch+json": 415, ";": 415,
	} {
		req := post(t, `{"event":"READY","url":"https://e.com"}`)
		req.Header.Set("Content-Type", contentType)
		if w, p := problem(t, handler(t, &stub{}, t.Output()), req); w.Code != want || want == 415 && field(p) != "Content-Type" {
			t.Errorf("%q: %d %+v, want %d", contentType, w.Code, p, want)
		}
	}
}

// TestManyMistakes checks that the answer to a body full of mistakes is short: a
// megabyte of mistakes once took 9 s and was answered with 2 MB.
func TestManyMistakes(t *testing.T) {
	t.Parallel()
	var unknown, headers strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&unknown, `,"unknown %d":1`, i)
		fmt.Fprintf(&headers, `,"%d":1`, i)
	}
	long := strings.Repeat("é", 100_000)
	for name, body := range map[string]string{
		"unknown fields": `{"event":"READY","url":"https://e.com"` + unknown.String() + `}`,
		"headers":        `{"event":"READY","url":"https://e.com","headers":{"a":"b"` + headers.String() + `}}`,
		"a long name":    `{"event":"READY","url":"https://e.com","` + long + `":1}`,
		"a name twice":   `{"event":"READY","url":"https://e.com","` + long + `":1,"` + long + `":1}`,
		"ids":            `{"event":"READY","url":"https://e.com","filter":{"guild_ids":["x"` + strings.Repeat(`,"x"`, 50_000) + `]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, p := problem(t, handler(t, &stub{}, t.Output()), post(t, body))
			if w.Code != 400 || w.Body.Len() > 40_000 || p.Errors == nil || len(*p.Errors) > 20 {
				t.Errorf("%d, %d bytes: %.500s", w.Code, w.Body.Len(), w.Body)
			}
		})
	}
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		method, path  string
		status        int
		allow, detail string
	}{
		{"GET", "/healthz", 200, "", ""},
		{"HEAD", "/healthz", 200, "", ""},
		{"POST", "/healthz", 405, "GET, HEAD", "use GET"},
		{"GET", "/listeners/lst_1", 200, "", ""},
		{"GET", "/listeners/a%2Fb", 200, "", ""},
		{"PUT", "/listeners", 405, "GET, HEAD, POST, DELETE", ""},
		{"OPTIONS", "/listeners", 405, "GET, HEAD, POST, DELETE", ""},
		{"POST", "/listeners/lst_1", 405, "GET, HEAD, PATCH, DELETE", ""},
		{"GET", "/listeners/", 404, "", "/listeners/"},
		{"GET", "/listeners/a/b", 404, "", ""},
		{"GET", "//listeners", 404, "", ""},
		{"GET", "/%6Cisteners", 404, "", ""},
		{"GET", "/nothing", 404, "", "there is no /nothing"},
		{"GET", "/" + strings.Repeat("n", 5000), 404, "", "…"},
	}
	for _, tt := range tests {
		w, p := problem(t, handler(t, &stub{}, t.Output()), httptest.NewRequestWithContext(t.Context(), tt.method, tt.path, nil))
		if w.Code != tt.status || w.Header().Get("Allow") != tt.allow || !strings.Contains(p.Detail, tt.detail) || len(p.Detail) > 500 {
			t.Errorf("%s %.50s: %d, Allow %q: %.600s; want %d, %q", tt.method, tt.path, w.Code, w.Header().Get("Allow"), w.Body, tt.status, tt.allow)
		}
	}
}

// TestHead checks that the answer to HEAD over a real connection has no body.
func TestHead(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(handler(t, &stub{}, t.Output()))
	defer s.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodHead, s.URL+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.Body.Close() != nil || resp.StatusCode != 200 || len(body) != 0 {
		t.Errorf("%d, %d bytes, %v", resp.StatusCode, len(body), err)
	}
}

func TestKey(t *testing.T) {
	t.Parallel()
	tests := []struct {
		path, given, key string
		status           int
	}{
		{"/listeners/lst_1", "", key, 401},
		{"/listeners/lst_1", "Bearer", key, 401},
		{"/listeners/lst_1", "Bearer ", key, 401},
		{"/listeners/lst_1", "Bearer gk_tes", key, 401},
		{"/listeners/lst_1", "Bearer gk_test2", key, 401},
		{"/listeners/lst_1", key, key, 401},
		{"/listeners/lst_1", "Basic " + key, key, 401},
		{"/listeners/lst_1", "Bearer " + key, key, 200},
		{"/listeners/lst_1", "bearer  " + key, key, 200},
		{"/listeners/lst_1", "Bearer ", "", 401}, // a server without a key accepts none
		{"/nothing", "", key, 401},
		{"/healthz", "", key, 200},
		{"/healthz", "Bearer wrong", key, 200},
	}
	for _, tt := range tests {
		h, err := openapi.NewHandler(&stub{}, openapi.Options{APIKey: secret.New(tt.key), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		req := httptest.NewRequestWithContext(t.Context(), "GET", tt.path, nil)
		if tt.given != "" {
			req.Header.Set("Authorization", tt.given)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code != tt.status || (w.Code == 401) != strings.HasPrefix(w.Header().Get("WWW-Authenticate"), "Bearer ") {
			t.Errorf("%s with %q: %d %v", tt.path, tt.given, w.Code, w.Header())
		}
	}
}

// TestErrorsOfHandlers checks that the text of a handler's error appears only in the
// log, unless the error is an Error.
func TestErrorsOfHandlers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		fail   func(context.Context) error
		status int
		logged bool
		header string
	}{
		{"unknown", func(context.Context) error { return errors.New("secret text") }, 500, true, ""},
		{"panic", func(context.Context) error { panic("secret text") }, 500, true, ""},
		{"answer", func(context.Context) error { return fmt.Errorf("wrapped: %w", openapi.NotFound("gone")) }, 404, false, ""},
		{"no database", func(context.Context) error { return openapi.Unavailable() }, 503, false, "Retry-After"},
		{"conflict", func(context.Context) error { return &openapi.Error{Status: 409, Detail: "taken", ListenerID: "lst_1"} }, 409, false, "Location"},
		{"deadline", func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, time.Nanosecond)
			defer cancel()
			<-ctx.Done()
			return fmt.Errorf("secret text: %w", ctx.Err())
		}, 503, false, "Retry-After"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			w, _ := problem(t, handler(t, &stub{fail: tt.fail}, &log), httptest.NewRequestWithContext(t.Context(), "GET", "/shards", nil))
			if w.Code != tt.status || strings.Contains(w.Body.String(), "secret") || tt.header != "" && w.Header().Get(tt.header) == "" {
				t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
			}
			if got := strings.Contains(log.String(), "secret text"); got != tt.logged {
				t.Errorf("logged %q", log.String())
			}
		})
	}
}

// TestContract checks that the served contract is valid OpenAPI 3.1, and uses what
// 3.1 added.
func TestContract(t *testing.T) {
	t.Parallel()
	served := openapi.Contract()
	var got struct {
		OpenAPI    string
		Info       struct{ License struct{ Identifier string } }
		Paths      map[string]map[string]any
		Webhooks   map[string]any
		Components struct {
			Schemas map[string]struct {
				Properties map[string]struct{ Type any }
			}
		}
	}
	if err := json.Unmarshal(served, &got); err != nil {
		t.Fatal(err)
	}
	if got.OpenAPI != "3.1.0" || got.Info.License.Identifier == "" || got.Webhooks["event"] == nil || got.Paths["/listeners/{id}"]["patch"] == nil ||
		fmt.Sprint(got.Components.Schemas["Listener"].Properties["max_age"].Type) != "[string null]" {
		t.Errorf("served: %+v", got)
	}
	doc, err := openapi3.NewLoader().LoadFromData(served)
	if err != nil {
		t.Fatal(err)
	}
	// Requests must be checked against the served contract: both documents are
	// generated, and one of them may be out of date.
	calls, err := openapi3.NewLoader().LoadFromData(api.Calls())
	if err != nil {
		t.Fatal(err)
	}
	doc.Webhooks = nil
	for name := range doc.Components.Schemas {
		if calls.Components.Schemas[name] == nil {
			delete(doc.Components.Schemas, name)
		}
	}
	if want, got := marshal(t, calls), marshal(t, doc); want != got {
		t.Errorf("the served contract is %s, openapi.yaml is %s: run make generate", got, want)
	}
	doc, err = openapi3.NewLoader().LoadFromData(served)
	if err != nil {
		t.Fatal(err)
	}
	// TestDocumentsAgree checks the examples, because this validator wrongly assumes
	// that a schema without a type forbids null.
	if err := doc.Validate(t.Context(), openapi3.DisableExamplesValidation()); err != nil {
		t.Error(err)
	}
}

func marshal(t *testing.T, doc *openapi3.T) string {
	t.Helper()
	b, err := doc.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
