package listeners

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/openapi"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
	"github.com/gatehook/gatehook/internal/secret"
)

const apiKey = "gk_test"

// calls implements only the listeners' calls of the contract; the tests make no others.
type calls struct {
	*Calls
	rest
}

// nowhere is a plain http:// callback whose host can have no address,
// because a label longer than 63 bytes is not valid (RFC 1035, section 2.3.4).
var nowhere = "http://" + strings.Repeat("n", 64) + ".example/"

type rest struct{ openapi.StrictServerInterface }

type api struct {
	*Listeners
	pool    *pgxpool.Pool
	handler http.Handler
	ifMatch string // sent with each call, unless it is empty
}

// others takes the place of the gateway and the delivery package.
type others struct{}

// Advise refuses presences, and has a note for events that need more intents.
func (others) Advise(_ context.Context, p event.Pattern, before event.Intents) (string, []string) {
	if p.Name == "PRESENCE_UPDATE" {
		return "PRESENCE_UPDATE is never sent: switch it on", nil
	}
	if more := p.Needs() &^ before; more != 0 {
		return "", []string{"identify with " + more.String()}
	}
	return "", nil
}

func (others) Ping(_ context.Context, l *event.Listener) error {
	u, err := url.Parse(l.URL)
	if err != nil || len(l.Secrets) == 0 || l.Format != event.FormatDiscord {
		return errors.New("it can't be pinged")
	}
	if strings.HasPrefix(u.Hostname(), "refuses") {
		return errors.New("it answered 401 instead of 204 to a signed PING")
	}
	return nil
}

func open(t testing.TB, pool *pgxpool.Pool) *Listeners {
	t.Helper()
	s, err := openWith(t, pool, secret.Keys{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openWith(t testing.TB, pool *pgxpool.Pool, keys secret.Keys) (*Listeners, error) {
	t.Helper()
	return Open(t.Context(), pool, Config{
		Keys:   keys,
		Forget: func(context.Context, pgx.Tx, int64) error { return nil },
		Renew:  func(context.Context, pgx.Tx, int64) error { return nil },
	}, slog.New(slog.DiscardHandler))
}

func setup(t testing.TB) *api {
	t.Helper()
	a := &api{pool: postgrestest.New(t)}
	a.Listeners = open(t, a.pool)
	a.handler = handlerOf(t, a.Listeners)
	return a
}

// TestAdvice checks that a listener that can never receive its event is refused when
// it is created, changed or enabled, and that only the answers to these calls have
// notes.
func TestAdvice(t *testing.T) {
	t.Parallel()
	a := setup(t)
	refused := func(got answered) {
		t.Helper()
		if got.status != http.StatusBadRequest || got.problem.Field == nil || *got.problem.Field != "event" || !strings.Contains(got.problem.Detail, "switch it on") {
			t.Errorf("%d %v", got.status, got.body)
		}
	}
	notes := func(got answered, status int, want ...any) string {
		t.Helper()
		if got.status != status || !slices.Equal(got.body["notes"].([]any), want) {
			t.Errorf("%d %v, want the notes %q", got.status, got.body, want)
		}
		return "/listeners/" + got.body["id"].(string)
	}
	create := func(eventName, more string) answered {
		t.Helper()
		return a.call(t, "POST", "/listeners", `{"event":"`+eventName+`","url":"https://x.example/`+eventName+`"`+more+`}`)
	}
	refused(create("PRESENCE_UPDATE", ""))
	path := notes(create("GUILD_BAN_ADD", ""), http.StatusCreated, "identify with GUILD_MODERATION")
	notes(create("GUILD_BAN_REMOVE", ""), http.StatusCreated)
	refused(a.call(t, "PATCH", path, `{"event":"RAW_PRESENCE_UPDATE"}`))
	notes(a.call(t, "PATCH", path, `{"event":"TYPING_START"}`), http.StatusOK, "identify with GUILD_MESSAGE_TYPING,DIRECT_MESSAGE_TYPING")
	notes(a.call(t, "PATCH", path, `{"description":"x"}`), http.StatusOK)
	if got := a.call(t, "GET", path, ""); got.body["notes"] != nil {
		t.Errorf("GET has notes: %v", got.body)
	}
	disabled := notes(create("PRESENCE_UPDATE", `,"enabled":false`), http.StatusCreated)
	refused(a.call(t, "PATCH", disabled, `{"enabled":true}`))
}

// TestPingOfDiscordListeners checks that a callback in the format discord is registered
// only if it verifies signatures, unless the request has "verify": false.
func TestPingOfDiscordListeners(t *testing.T) {
	t.Parallel()
	a := setup(t)
	refused := func(got answered) {
		t.Helper()
		if got.status != http.StatusBadRequest || got.problem.Field == nil || *got.problem.Field != "url" || !strings.Contains(got.problem.Detail, "PING") {
			t.Errorf("%d %v", got.status, got.body)
		}
	}
	create := func(host, more string) answered {
		t.Helper()
		return a.call(t, "POST", "/listeners", `{"event":"GUILD_CREATE","url":"https://`+host+`/","format":"discord"`+more+`}`)
	}
	refused(create("refuses.example", ""))
	refused(create("refuses.example", `,"verify":true`))
	if got := a.call(t, "GET", "/listeners", ""); len(got.body["data"].([]any)) != 0 {
		t.Errorf("a refused listener was registered: %v", got.body)
	}
	if got := create("refuses-later.example", `,"verify":false`); got.status != http.StatusCreated {
		t.Errorf("without a PING: %d %v", got.status, got.body)
	}
	accepted := create("accepts.example", "")
	if accepted.status != http.StatusCreated || accepted.body["format"] != "discord" {
		t.Fatalf("%d %v", accepted.status, accepted.body)
	}
	path := "/listeners/" + accepted.body["id"].(string)
	refused(a.call(t, "PATCH", path, `{"url":"https://refuses.example/"}`))
	for _, body := range []string{
		`{"url":"https://refuses.example/","verify":false}`,         // not pinged
		`{"description":"x"}`, `{"url":"https://refuses.example/"}`, // the URL is already registered
		`{"format":"standard"}`,
	} {
		if got := a.call(t, "PATCH", path, body); got.status != http.StatusOK {
			t.Errorf("PATCH %s: %d %v", body, got.status, got.body)
		}
	}
	refused(a.call(t, "PATCH", path, `{"format":"discord"}`))
}

func handlerOf(t testing.TB, s *Listeners) http.Handler {
	t.Helper()
	c := NewCalls(s, CallsConfig{
		AllowTargets: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		Gateway:      others{}, Callbacks: others{},
	})
	h, err := openapi.NewHandler(calls{Calls: c}, openapi.Options{APIKey: secret.New(apiKey), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

type answered struct {
	status  int
	header  http.Header
	body    map[string]any
	problem openapi.Problem
}

func (a *api) call(t testing.TB, method, path, body string) answered {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	req.Header.Set("Authorization", "Bearer "+apiKey)
	if a.ifMatch != "" {
		req.Header.Set("If-Match", a.ifMatch)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	got := a.do(t, req)
	if got.status == http.StatusInternalServerError {
		t.Errorf("%s %s %s: %v", method, path, body[:min(len(body), 200)], got.body)
	}
	return got
}

// do makes a call, and checks that an error is a problem document.
func (a *api) do(t testing.TB, req *http.Request) answered {
	t.Helper()
	w := httptest.NewRecorder()
	a.handler.ServeHTTP(w, req)
	got := answered{status: w.Code, header: w.Header()}
	if w.Body.Len() > 0 {
		if err := json.Unmarshal(w.Body.Bytes(), &got.body); err != nil {
			t.Errorf("%s %s: %v in %s", req.Method, req.URL, err, w.Body)
		}
	}
	if w.Code < 400 {
		return got
	}
	d := json.NewDecoder(bytes.NewReader(w.Body.Bytes()))
	d.DisallowUnknownFields()
	if err := d.Decode(&got.problem); err != nil || w.Header().Get("Content-Type") != "application/problem+json" ||
		got.problem.Status != w.Code || got.problem.Detail == "" || got.problem.Title == "" {
		t.Errorf("%s %s: no problem document: %v: %d %s", req.Method, req.URL, err, w.Code, w.Body)
	}
	return got
}

func (a *api) create(t testing.TB, body string) answered {
	t.Helper()
	got := a.call(t, "POST", "/listeners", body)
	if got.status != http.StatusCreated {
		t.Fatalf("POST %s: %d %v", body, got.status, got.body)
	}
	return got
}

func TestListenerThroughItsLife(t *testing.T) {
	t.Parallel()
	a := setup(t)
	created := a.create(t, `{"event":" guild_ban_add ","url":"https://example.com/a"}`)
	id, _ := created.body["id"].(string)
	if created.header.Get("Location") != "/listeners/"+id || !strings.HasPrefix(fmt.Sprint(created.body["secret"]), "whsec_") {
		t.Errorf("created %v, %v", created.header, created.body)
	}
	want := map[string]any{
		"event": "GUILD_BAN_ADD", "url": "https://example.com/a", "description": "", "enabled": true, "format": "standard",
		"headers": map[string]any{}, "filter": map[string]any{}, "ordering": "none", "max_in_flight": 16.0, "max_age": nil,
		"disabled_at": nil, "disabled_reason": nil,
	}
	got := a.call(t, "GET", "/listeners/"+id, "")
	for field, v := range want {
		if fmt.Sprint(got.body[field]) != fmt.Sprint(v) {
			t.Errorf("%s is %v, want %v", field, got.body[field], v)
		}
	}
	if _, shown := got.body["secret"]; shown {
		t.Error("GET shows the secret")
	}
	// It matches the very next event.
	ev := &event.Event{Name: "GUILD_BAN_ADD", GuildID: 5}
	if ids, _ := a.Match(ev); len(ids) != 1 {
		t.Errorf("Match = %v after the 201", ids)
	}
	if again := a.call(t, "POST", "/listeners", `{"event":"GUILD_BAN_ADD","url":"https://example.com/a"}`); again.status != http.StatusConflict ||
		deref(again.problem.ListenerId) != id || again.header.Get("Location") != "/listeners/"+id {
		t.Errorf("registered again: %d %v", again.status, again.body)
	}

	patched := a.call(t, "PATCH", "/listeners/"+id, `{"enabled":false,"filter":{"guild_ids":["7"]},"max_age":"10m","ordering":"guild"}`)
	if patched.status != 200 || patched.body["enabled"] != false || patched.body["disabled_at"] == nil || patched.body["max_age"] != "10m" ||
		patched.body["ordering"] != "guild" || patched.body["disabled_reason"] != "manual" {
		t.Errorf("patched %d %v", patched.status, patched.body)
	}
	if ids, missed := a.Match(ev); len(ids) != 0 || missed {
		t.Errorf("Match = %v, %v while disabled, for another guild", ids, missed)
	}
	if ids, missed := a.Match(&event.Event{Name: "GUILD_BAN_ADD", GuildID: 7}); len(ids) != 0 || !missed {
		t.Errorf("Match = %v, %v while disabled", ids, missed)
	}
	patched = a.call(t, "PATCH", "/listeners/"+id, `{"enabled":true,"max_age":null}`)
	if patched.body["enabled"] != true || patched.body["disabled_at"] != nil || patched.body["max_age"] != nil || patched.body["disabled_reason"] != nil {
		t.Errorf("patched %d %v", patched.status, patched.body)
	}
	if ids, _ := a.Match(ev); len(ids) != 0 {
		t.Errorf("Match = %v for another guild", ids)
	}
	if ids, _ := a.Match(&event.Event{Name: "GUILD_BAN_ADD", GuildID: 7}); len(ids) != 1 {
		t.Errorf("Match = %v for its guild", ids)
	}

	other := a.create(t, `{"event":"GUILD_BAN_ADD","url":"https://example.com/b"}`)
	taken := a.call(t, "PATCH", fmt.Sprintf("/listeners/%v", other.body["id"]), `{"url":"https://example.com/a"}`)
	if taken.status != http.StatusConflict || deref(taken.problem.ListenerId) != id {
		t.Errorf("patched onto another: %d %v", taken.status, taken.body)
	}
	if moved := a.call(t, "PATCH", "/listeners/"+id, `{"url":"`+nowhere+`"}`); moved.status != 400 || deref(moved.problem.Field) != "url" {
		t.Errorf("patched to a host that does not resolve: %d %v", moved.status, moved.body)
	}
	if gone := a.call(t, "DELETE", "/listeners/"+id, ""); gone.status != 204 {
		t.Errorf("DELETE: %d %v", gone.status, gone.body)
	}
	if again := a.call(t, "DELETE", "/listeners/"+id, ""); again.status != 404 {
		t.Errorf("DELETE again: %d %v", again.status, again.body)
	}
	pair := "/listeners?event=guild_ban_add&url=" + url.QueryEscape("https://example.com/b")
	if gone := a.call(t, "DELETE", pair, ""); gone.status != 204 {
		t.Errorf("DELETE by pair: %d %v", gone.status, gone.body)
	}
	if again := a.call(t, "DELETE", pair, ""); again.status != 404 {
		t.Errorf("DELETE by pair again: %d", again.status)
	}
	if ids, _ := a.Match(&event.Event{Name: "GUILD_BAN_ADD", GuildID: 7}); len(ids) != 0 {
		t.Errorf("Match = %v with no listener left", ids)
	}
}

func TestEveryFieldIsChecked(t *testing.T) {
	t.Parallel()
	a := setup(t)
	var large string // too large together, although no header is too long
	for i := range 5 {
		large += fmt.Sprintf(`,"x-%d":"%s"`, i, strings.Repeat("v", 4000))
	}
	large = large[1:]
	key := func(n int) string { return "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, n)) }
	tests := []struct {
		body   string
		status int
		field  string
		says   string
	}{
		{`{"url":"https://e.com"}`, 400, "event", ""},
		{`{"event":"READY"}`, 400, "url", ""},
		{`{"event":"READY","url":"https://e.com","color":"red"}`, 400, "color", ""},
		{`{"event":1,"url":"https://e.com"}`, 400, "event", ""},
		{`{"event":"GUILD_BAN_AD","url":"https://e.com"}`, 400, "event", "GUILD_BAN_ADD"},
		{`{"event":"NOPE_*","url":"https://e.com"}`, 400, "event", "NOPE_*"},
		{`{"event":"a b","url":"https://e.com"}`, 400, "event", "A B"},
		{`{"event":"","url":"https://e.com"}`, 400, "event", ""},
		{`{"event":"READY","url":"e.com"}`, 400, "url", "https://"},
		{`{"event":"READY","url":"ftp://e.com"}`, 400, "url", ""},
		{`{"event":"READY","url":"http://93.184.216.34/"}`, 400, "url", "https://"},
		{`{"event":"READY","url":"` + nowhere + `"}`, 400, "url", "is not the name of a host"},
		{`{"event":"READY","url":"https://u:p@e.com"}`, 400, "url", "password"},
		{`{"event":"READY","url":"https://e.com/#x"}`, 400, "url", "fragment"},
		{`{"event":"READY","url":"https://e.com/` + strings.Repeat("€", 1000) + `"}`, 400, "url", "2048 bytes"},
		{`{"event":"READY","url":"https://10.0.0.1/"}`, 400, "url", "private"},
		{`{"event":"READY","url":"https://[::ffff:10.0.0.1]/"}`, 400, "url", "private"},
		{`{"event":"READY","url":"https://e.com:99999/"}`, 400, "url", "port"},
		{`{"event":"READY","url":"https://e.com","format":"xml"}`, 400, "format", ""},
		{`{"event":"READY","url":"https://e.com","secret":"abc"}`, 400, "secret", "whsec_"},
		{`{"event":"READY","url":"https://e.com","secret":"` + key(23) + `"}`, 400, "secret", ""},
		{`{"event":"READY","url":"https://e.com","secret":"` + key(65) + `"}`, 400, "secret", ""},
		{`{"event":"READY","url":"https://e.com","headers":{"Webhook-Id":"x"}}`, 400, "headers.Webhook-Id", "itself"},
		{`{"event":"READY","url":"https://e.com","headers":{"content-type":"x"}}`, 400, "headers.content-type", "itself"},
		{`{"event":"READY","url":"https://e.com","headers":{"a b":"x"}}`, 400, "headers.a b", ""},
		{`{"event":"READY","url":"https://e.com","headers":{"a":"x\r\ny: z"}}`, 400, "headers.a", ""},
		{`{"event":"READY","url":"https://e.com","headers":{"X-A":"","x-a":"1"}}`, 400, "headers.x-a", "twice"},
		{`{"event":"READY","url":"https://e.com","headers":{"b c":"","a b":"1"}}`, 400, "headers.a b", ""},
		{`{"event":"READY","url":"https://e.com","headers":{` + large + `}}`, 400, "headers", "16384"},
		{`{"event":"READY","url":"https://e.com","headers":{"a":1}}`, 400, "headers.a", ""},
		{`{"event":"READY","url":"https://e.com","filter":{"guild_ids":["x"]}}`, 400, "filter.guild_ids.0", ""},
		{`{"event":"READY","url":"https://e.com","filter":{"user_ids":["0"]}}`, 400, "filter.user_ids.0", ""},
		{`{"event":"READY","url":"https://e.com","filter":{"role_ids":["1"]}}`, 400, "filter.role_ids", ""},
		{`{"event":"READY","url":"https://e.com","ordering":"user"}`, 400, "ordering", ""},
		{`{"event":"READY","url":"https://e.com","max_in_flight":0}`, 400, "max_in_flight", ""},
		{`{"event":"READY","url":"https://e.com","max_in_flight":1001}`, 400, "max_in_flight", ""},
		{`{"event":"READY","url":"https://e.com","max_in_flight":1.5}`, 400, "max_in_flight", ""},
		{`{"event":"READY","url":"https://e.com","max_age":"soon"}`, 400, "max_age", "soon"},
		{`{"event":"READY","url":"https://e.com","max_age":"-1s"}`, 400, "max_age", ""},
		{`{"event":"READY","url":"https://e.com","max_age":"1.5ms"}`, 400, "max_age", "whole milliseconds"},
		{`{"event":"READY","url":"https://e.com","max_age":"721h"}`, 400, "max_age", "720h"},
		{`{"event":"READY","url":"https://e.com","enabled":"yes"}`, 400, "enabled", ""},
		{`{"event":"READY","url":"https://e.com","description":"a\u0000b"}`, 400, "description", ""},
		{`{`, 400, "body", ""},
		{`[]`, 400, "body", ""},
		{`null`, 400, "body", ""},
		{strings.Repeat(" ", 2<<20), 413, "", "1048576"},
	}
	for _, tt := range tests {
		got := a.call(t, "POST", "/listeners", tt.body)
		short := tt.body[:min(len(tt.body), 100)]
		if got.status != tt.status || deref(got.problem.Field) != tt.field || !strings.Contains(got.problem.Detail, tt.says) {
			t.Errorf("%s: %d, field %q: %s; want %d, %q, %q in it", short, got.status, deref(got.problem.Field), got.problem.Detail,
				tt.status, tt.field, tt.says)
		}
		if strings.Contains(got.problem.Detail, "whsec_AAAA") {
			t.Errorf("%s: the secret is shown: %s", short, got.problem.Detail)
		}
	}
	several := a.call(t, "POST", "/listeners", `{"event":"NOPE","url":"x","max_age":"y"}`)
	var fields []string
	for _, f := range deref(several.problem.Errors) {
		fields = append(fields, f.Field)
	}
	if !slices.Equal(fields, []string{"event", "url", "max_age"}) {
		t.Errorf("fields at fault: %v", fields)
	}
}

func TestWhatIsAccepted(t *testing.T) {
	t.Parallel()
	a := setup(t)
	for i, body := range []string{
		`{"event":"*","url":"https://example.com/1"}`,
		`{"event":"RAW_*","url":"https://example.com/1"}`,
		`{"event":"guild_*","url":"https://example.com/1"}`,
		`{"event":"RAW_GUILD_BAN_ADD","url":"https://example.com/1"}`,
		`{"event":"TOMORROWS_EVENT","url":"https://example.com/1","allow_unknown":true}`,
		`{"event":"SHARD_CONNECT","url":"https://example.com:8443/1"}`,
		`{"event":"GATEHOOK_SESSION_LOST","url":"http://127.0.0.1:9000/x"}`,
		`{"event":"READY","url":"http://localhost:9000/x","headers":{"X-Token":"t"},"filter":{"guild_ids":["175928847299117063"]}}`,
		`{"event":"READY","url":"https://example.com/2","format":"chat-sdk","max_in_flight":1,"ordering":"channel","max_age":"1h30m"}`,
		`{"event":"READY","url":"https://example.com/3","secret":"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw","enabled":false}`,
	} {
		got := a.create(t, body)
		if i == 9 && got.body["secret"] != "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" {
			t.Errorf("the given secret became %v", got.body["secret"])
		}
	}
	// A pair of the maximum length, which an index can't compress.
	random := make([]byte, 2048)
	for i := range random {
		random[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ_"[rand.IntN(27)]
	}
	a.create(t, fmt.Sprintf(`{"event":"%s","url":"https://e.com/%s","allow_unknown":true}`, random[:100], random[14:]))
	if got := a.create(t, `{"event":"INTERACTION_CREATE","url":"https://example.com/1"}`); got.body["max_age"] != "3s" {
		t.Errorf("max_age of INTERACTION_CREATE is %v", got.body["max_age"])
	}
	if got := a.create(t, `{"event":"RAW_INTERACTION_CREATE","url":"https://example.com/1","max_age":null}`); got.body["max_age"] != nil {
		t.Errorf("max_age is %v, want null", got.body["max_age"])
	}
}

func TestPages(t *testing.T) {
	t.Parallel()
	a := setup(t)
	for i := range 7 {
		a.create(t, fmt.Sprintf(`{"event":"READY","url":"https://example.com/%d"}`, i))
	}
	a.create(t, `{"event":"RESUMED","url":"https://example.com/0"}`)
	var urls []any
	path, pages := "/listeners?limit=3&event=ready", 0
	for path != "" {
		got := a.call(t, "GET", path, "")
		data, _ := got.body["data"].([]any)
		for _, l := range data {
			m, _ := l.(map[string]any)
			urls = append(urls, m["url"])
		}
		path = ""
		if next, ok := got.body["next_cursor"].(string); ok {
			path = "/listeners?limit=3&event=READY&cursor=" + url.QueryEscape(next)
		}
		pages++
	}
	if pages != 3 || len(urls) != 7 || urls[0] != "https://example.com/6" || urls[6] != "https://example.com/0" {
		t.Errorf("%d pages: %v", pages, urls)
	}
	got := a.call(t, "GET", "/listeners?url="+url.QueryEscape("https://example.com/0"), "")
	if data, _ := got.body["data"].([]any); len(data) != 2 {
		t.Errorf("%d listeners of one url, want 2", len(data))
	}
	for query, field := range map[string]string{
		"limit=0": "limit", "limit=251": "limit", "limit=x": "limit", "limit=1&limit=2": "limit", "cursor=%21": "cursor", "cursor=": "cursor",
		"event=%00": "event", "url=%00": "url", "url=%ff": "url",
	} {
		if got := a.call(t, "GET", "/listeners?"+query, ""); got.status != 400 || deref(got.problem.Field) != field {
			t.Errorf("%s: %d %v", query, got.status, got.body)
		}
	}
}

// The whole catalog is served, with the model of each event.
func TestEventTypes(t *testing.T) {
	t.Parallel()
	got := setup(t).call(t, "GET", "/events/types", "")
	list, _ := got.body["data"].([]any)
	if len(list) != len(event.Types()) {
		t.Fatalf("%d events: %v", len(list), got.body)
	}
	for i, e := range event.Types() {
		served, _ := list[i].(map[string]any)
		var model any
		if e.Model != "" {
			model = e.Model
		}
		if served["name"] != e.Name || served["raw_name"] != "RAW_"+e.Name || served["model"] != model || served["parsed"] != (e.Model != "") ||
			served["about"] != e.About || served["privileged"] != e.Privileged() {
			t.Errorf("%s is served as %v", e.Name, served)
		}
	}
}

func TestKeyRoutesAndMethods(t *testing.T) {
	t.Parallel()
	a := setup(t)
	tests := []struct {
		method, path, key, contentType, body string
		status                               int
	}{
		{"GET", "/listeners", "", "", "", 401},
		{"GET", "/listeners", "Bearer wrong", "", "", 401},
		{"GET", "/listeners", "Basic " + apiKey, "", "", 401},
		{"GET", "/listeners", "bearer " + apiKey, "", "", 200},
		{"GET", "/events/types", "Bearer " + apiKey, "", "", 200},
		{"GET", "/nothing", "Bearer " + apiKey, "", "", 404},
		{"GET", "/nothing", "", "", "", 401},
		{"PUT", "/listeners", "Bearer " + apiKey, "", "", 405},
		{"POST", "/listeners/lst_1", "Bearer " + apiKey, "", "", 405},
		{"GET", "/listeners/lst_1", "Bearer " + apiKey, "", "", 404},
		{"GET", "/listeners/1", "Bearer " + apiKey, "", "", 404},
		{"DELETE", "/listeners", "Bearer " + apiKey, "", "", 400},
		{"POST", "/listeners", "Bearer " + apiKey, "text/plain", "{}", 415},
		{"POST", "/listeners", "Bearer " + apiKey, "", "", 400},
	}
	for _, tt := range tests {
		req := httptest.NewRequestWithContext(t.Context(), tt.method, tt.path, strings.NewReader(tt.body))
		if tt.key != "" {
			req.Header.Set("Authorization", tt.key)
		}
		if tt.contentType != "" {
			req.Header.Set("Content-Type", tt.contentType)
		}
		got := a.do(t, req)
		if got.status != tt.status {
			t.Errorf("%s %s: %d %v, want %d", tt.method, tt.path, got.status, got.body, tt.status)
		}
		if got.status == 405 && got.header.Get("Allow") == "" || got.status == 401 && got.header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s %s: header %v", tt.method, tt.path, got.header)
		}
	}
}

// run runs an instance until the test ends.
func run(t *testing.T, s *Listeners) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// awaitNeeds waits until an instance knows about a change of its needs.
func awaitNeeds(t *testing.T, s *Listeners, want event.Intents) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for s.Needs() != want {
		select {
		case <-s.NeedsChanged():
		case <-deadline:
			t.Fatalf("the instance needs %v, want %v: it does not know about the change", s.Needs(), want)
		}
	}
}

// Other instances are notified of a change, even after their connections broke.
func TestChangeIsAnnounced(t *testing.T) {
	t.Parallel()
	a := setup(t)
	other := open(t, a.pool)
	other.poll = time.Hour
	run(t, other)
	a.create(t, `{"event":"GUILD_BAN_ADD","url":"https://example.com/a"}`)
	awaitNeeds(t, other, event.IntentGuildModeration)
	if ids, _ := other.Match(&event.Event{Name: "GUILD_BAN_ADD"}); len(ids) != 1 {
		t.Error("the other instance does not match the event")
	}
	var broken int
	if err := a.pool.QueryRow(t.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE datname = current_database() AND query LIKE 'LISTEN %'`).Scan(&broken); err != nil || broken != 1 {
		t.Fatalf("%d connections listen, %v", broken, err)
	}
	a.create(t, `{"event":"INVITE_CREATE","url":"https://example.com/a"}`)
	awaitNeeds(t, other, event.IntentGuildModeration|event.IntentGuildInvites)
	if got := a.call(t, "DELETE", "/listeners/lst_1", ""); got.status != 204 {
		t.Fatalf("DELETE: %d %v", got.status, got.body)
	}
	awaitNeeds(t, other, event.IntentGuildInvites)
}

// Without notifications, as through some poolers, an instance polls for changes.
func TestChangeIsPolled(t *testing.T) {
	t.Parallel()
	a := setup(t)
	a.poll = 10 * time.Millisecond
	run(t, a.Listeners)
	// Two changes, because the instance also reads once when it begins to listen.
	needs := event.Intents(0)
	for name, intent := range map[string]event.Intents{"GUILD_BAN_ADD": event.IntentGuildModeration, "INVITE_CREATE": event.IntentGuildInvites} {
		if _, err := a.pool.Exec(t.Context(), `WITH v AS (UPDATE listeners_version SET version = version + 1)
				INSERT INTO listeners (event, url) VALUES ($1, 'https://example.com/a')`, name); err != nil {
			t.Fatal(err)
		}
		needs |= intent
		awaitNeeds(t, a.Listeners, needs)
	}
}

// An instance that makes a change without knowing of an earlier one knows both when it
// answers.
func TestChangeAfterAnUnknownOne(t *testing.T) {
	t.Parallel()
	a := setup(t)
	b := *a
	b.Listeners = open(t, a.pool)
	b.handler = handlerOf(t, b.Listeners)
	a.create(t, `{"event":"GUILD_BAN_ADD","url":"https://example.com/a"}`)
	b.create(t, `{"event":"TYPING_START","url":"https://example.com/b"}`)
	for _, name := range []string{"GUILD_BAN_ADD", "TYPING_START"} {
		if ids, _ := b.Match(&event.Event{Name: name}); len(ids) != 1 {
			t.Errorf("%s has no listener", name)
		}
	}
}

// After many concurrent changes the tables agree with the database, and no pair is
// registered twice.
func TestChangesAtOnce(t *testing.T) {
	t.Parallel()
	a := setup(t)
	b := *a
	b.Listeners = open(t, a.pool)
	b.handler = handlerOf(t, b.Listeners)
	run(t, a.Listeners)
	run(t, b.Listeners)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			via := []*api{a, &b}[worker%2]
			for i := range 10 {
				body := fmt.Sprintf(`{"event":"READY","url":"https://example.com/%d"}`, i)
				got := via.call(t, "POST", "/listeners", body)
				switch got.status {
				case http.StatusCreated:
					if i%2 == 0 {
						via.call(t, "DELETE", "/listeners/"+fmt.Sprint(got.body["id"]), "")
					}
				case http.StatusConflict:
					moved := via.call(t, "PATCH", "/listeners/"+deref(got.problem.ListenerId), fmt.Sprintf(`{"url":"https://example.com/%d"}`, (i+1+worker)%10))
					if !slices.Contains([]int{200, 404, 409}, moved.status) {
						t.Errorf("PATCH: %d %v", moved.status, moved.body)
					}
				default:
					t.Errorf("POST %s: %d %v", body, got.status, got.body)
				}
			}
		})
	}
	wg.Wait()
	var stored []int64
	rows, err := a.pool.Query(t.Context(), `SELECT id FROM listeners ORDER BY id`)
	if err == nil {
		stored, err = pgx.CollectRows(rows, pgx.RowTo[int64])
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Listeners{a.Listeners, b.Listeners} {
		if err := s.refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		matched, _ := s.Match(&event.Event{Name: "READY"})
		slices.Sort(matched)
		if !slices.Equal(matched, stored) {
			t.Errorf("the table has %v, the database %v", matched, stored)
		}
	}
}

func TestRetryConflict(t *testing.T) {
	t.Parallel()
	deadlock := fmt.Errorf("update a listener: %w", &pgconn.PgError{Code: "40P01"})
	for _, tt := range []struct {
		name  string
		errs  []error // of the tries in turn; later tries succeed
		tries int
		want  error
	}{
		{"at once", nil, 1, nil},
		{"the other listener is gone", []error{errVanished, errVanished}, 3, nil},
		{"a deadlock", []error{deadlock}, 2, nil},
		{"refused", []error{&takenError{id: 1}}, 1, &takenError{id: 1}},
		{"perhaps stored", []error{&pgconn.PgError{Code: "40003"}}, 1, &pgconn.PgError{Code: "40003"}},
		{"a broken connection", []error{io.ErrUnexpectedEOF}, 1, io.ErrUnexpectedEOF}, // it may have been stored
		{"without end", slices.Repeat([]error{deadlock}, 10), maxTries, deadlock},
	} {
		tries := 0
		_, err := retryConflict(func() (*registration, error) {
			tries++
			if tries > len(tt.errs) {
				return nil, nil
			}
			return nil, tt.errs[tries-1]
		})
		if tries != tt.tries || fmt.Sprint(err) != fmt.Sprint(tt.want) {
			t.Errorf("%s: %d tries, %v; want %d, %v", tt.name, tries, err, tt.tries, tt.want)
		}
	}
}

func TestDatabaseAwayIsReported(t *testing.T) {
	t.Parallel()
	pg := postgrestest.Start(t)
	pool := pg.Pool()
	a := &api{Listeners: open(t, pool)}
	a.handler = handlerOf(t, a.Listeners)
	a.create(t, `{"event":"READY","url":"https://example.com/a"}`)
	pg.Stop()
	for _, call := range [][3]string{
		{"POST", "/listeners", `{"event":"RESUMED","url":"https://example.com/a"}`},
		{"GET", "/listeners", ""},
		{"GET", "/listeners/lst_1", ""},
		{"PATCH", "/listeners/lst_1", `{"enabled":false}`},
		{"DELETE", "/listeners/lst_1", ""},
	} {
		got := a.call(t, call[0], call[1], call[2])
		if got.status != 503 || got.header.Get("Retry-After") == "" {
			t.Errorf("%s %s: %d %v", call[0], call[1], got.status, got.body)
		}
	}
	if ids, _ := a.Match(&event.Event{Name: "READY"}); len(ids) != 1 {
		t.Error("the table has lost its listeners")
	}
	pg.Restart()
	a.create(t, `{"event":"RESUMED","url":"https://example.com/a"}`)
	pool.Close()
}

func TestUnavailable(t *testing.T) {
	t.Parallel()
	pg := func(code string) error { return fmt.Errorf("store: %w", &pgconn.PgError{Code: code}) }
	tests := []struct {
		name string
		err  error
		want bool
	}{
		{"terminated by an administrator", pg("57P01"), true},
		{"too many connections", pg("53300"), true},
		{"a standby", pg("25006"), true},
		{"a deadlock", pg("40P01"), true},
		{"a refused login", fmt.Errorf("connect: %w", &pgconn.ConnectError{}), true},
		{"killed during an answer", fmt.Errorf("read: %w", io.ErrUnexpectedEOF), true},
		{"a broken connection", &net.OpError{Op: "read", Err: errors.New("broken pipe")}, true},
		{"too slow", fmt.Errorf("query: %w", context.DeadlineExceeded), true},
		{"a value that can't be stored", pg("22021"), false},
		{"a missing table", pg("42P01"), false},
		{"an error of ours", errors.New("scan"), false},
	}
	for _, tt := range tests {
		var e *openapi.Error
		got := answer(tt.err)
		if errors.As(got, &e) != tt.want || tt.want && e.Status != http.StatusServiceUnavailable || !tt.want && !errors.Is(got, tt.err) {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func FuzzBodies(f *testing.F) {
	for _, s := range []string{
		`{"event":"READY","url":"https://e.com"}`, `{"event":"*","url":"http://127.0.0.1:1/","filter":{"guild_ids":["1"]},"headers":{"a":"b"}}`,
		`{"max_age":"3s","enabled":true}`, `{"max_age":null}`, `{"event":"\u0000","url":"\ud800"}`, `[]`, `{"event":{}}`, `{"event":"A","event":"B"}`,
		`{"headers":{"":""}}`, `{"":"", ""`, `{"max_in_flight":1e400}`, "\xff\xfe", `{"url":"https://[::1%25eth0]/"}`,
	} {
		f.Add([]byte(s))
	}
	a := setup(f)
	a.create(f, `{"event":"READY","url":"https://example.com/a"}`)
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, call := range [][2]string{{"POST", "/listeners"}, {"PATCH", "/listeners/lst_1"}} {
			req := httptest.NewRequestWithContext(t.Context(), call[0], call[1], bytes.NewReader(body))
			req.Header.Set("Authorization", "Bearer "+apiKey)
			req.Header.Set("Content-Type", "application/json")
			got := a.do(t, req)
			if got.status >= 500 || got.status == 400 && deref(got.problem.Field) == "" {
				t.Errorf("%s %q: %d %v", call[0], body, got.status, got.body)
			}
			if _, err := io.ReadAll(req.Body); err != nil && got.status < 400 {
				t.Error(err)
			}
		}
	})
}

// Of several concurrent calls of Disable only one disables the listener and runs its
// own statements. If these fail, nothing is changed.
func TestDisabledOnce(t *testing.T) {
	t.Parallel()
	a := setup(t)
	id, _ := event.ParseListenerID(fmt.Sprint(a.create(t, `{"event":"READY","url":"https://example.com/a"}`).body["id"]))
	const calledURL = "https://example.com/a"
	broken := errors.New("broken")
	if err := a.Disable(t.Context(), id, calledURL+"/old", "gone", nil); err != nil || !a.Listener(id).Enabled {
		t.Errorf("what another URL answered: %v, enabled %v", err, a.Listener(id).Enabled)
	}
	if err := a.Disable(t.Context(), id, calledURL, "gone", func(context.Context, pgx.Tx) error { return broken }); !errors.Is(err, broken) || !a.Listener(id).Enabled {
		t.Errorf("%v, enabled %v", err, a.Listener(id).Enabled)
	}
	var disabled atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := a.Disable(t.Context(), id, calledURL, "gone", func(context.Context, pgx.Tx) error { disabled.Add(1); return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if disabled.Load() != 1 || a.Listener(id).Enabled {
		t.Errorf("disabled %d times, enabled %v", disabled.Load(), a.Listener(id).Enabled)
	}
	if err := a.Disable(t.Context(), id+1, calledURL, "gone", nil); err != nil {
		t.Errorf("a listener that does not exist: %v", err)
	}
}

// TestURLsAreNormalized: a URL is shown as it is called, and two forms of one URL are one
// registration.
func TestURLsAreNormalized(t *testing.T) {
	t.Parallel()
	a := setup(t)
	const raw, normal = "HTTPS://BÜCHER.example:443/ü?q=ü", "https://xn--bcher-kva.example/%C3%BC?q=%C3%BC"
	made := a.call(t, "POST", "/listeners", `{"event":"READY","url":"`+raw+`"}`)
	if made.status != 201 || made.body["url"] != normal {
		t.Fatalf("%d: %v", made.status, made.body)
	}
	if again := a.call(t, "POST", "/listeners", `{"event":"READY","url":"`+normal+`"}`); again.status != 409 {
		t.Errorf("the same URL in its normal form: %d", again.status)
	}
	for _, form := range []string{raw, normal} {
		if list := a.call(t, "GET", "/listeners?url="+url.QueryEscape(form), ""); len(list.body["data"].([]any)) != 1 {
			t.Errorf("not found by %s: %v", form, list.body)
		}
	}
	if gone := a.call(t, "DELETE", "/listeners?event=READY&url="+url.QueryEscape(raw), ""); gone.status != 204 {
		t.Errorf("not removed by the form it was registered in: %d %v", gone.status, gone.body)
	}
}

// TestRotations: each replaced secret signs for 24 h more, however often a client repeats
// the call, but there are ten at most; and none signs for longer.
func TestRotations(t *testing.T) {
	t.Parallel()
	a := setup(t)
	made := a.create(t, `{"event":"READY","url":"https://example.com/r"}`)
	path := "/listeners/" + made.body["id"].(string)
	id, _ := event.ParseListenerID(made.body["id"].(string))
	all := []string{made.body["secret"].(string)}
	signing := func() (out []string) {
		for _, s := range a.Listener(id).Secrets {
			out = append(out, s.Reveal())
		}
		slices.Reverse(out)
		return out
	}
	for range 12 {
		all = append(all, a.call(t, "POST", path+"/rotate-secret", "").body["secret"].(string))
		if want := all[max(0, len(all)-10):]; !slices.Equal(signing(), want) {
			t.Errorf("after %d rotations %d secrets sign, want the last %d", len(all)-1, len(signing()), len(want))
		}
	}
	// 24 h later.
	if _, err := a.pool.Exec(t.Context(), `UPDATE listener_secrets SET expires_at = now() + interval '50 ms' WHERE expires_at IS NOT NULL`); err != nil {
		t.Fatal(err)
	}
	time.Sleep(60 * time.Millisecond)
	if err := a.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := signing(); !slices.Equal(got, all[len(all)-1:]) {
		t.Errorf("24 h after the last rotation %d secrets sign", len(got))
	}
}

// TestEntityTags: a change or a removal that was decided on an older state is refused.
func TestEntityTags(t *testing.T) {
	t.Parallel()
	a := setup(t)
	made := a.create(t, `{"event":"READY","url":"https://example.com/e"}`)
	path, tag := "/listeners/"+made.body["id"].(string), made.header.Get("ETag")
	if read := a.call(t, "GET", path, ""); tag == "" || read.header.Get("ETag") != tag {
		t.Errorf("created as %q, read as %q", tag, read.header.Get("ETag"))
	}
	match := func(method, tag, body string) answered {
		t.Helper()
		a.ifMatch = tag
		defer func() { a.ifMatch = "" }()
		return a.call(t, method, path, body)
	}
	changed := match("PATCH", tag, `{"description":"one"}`)
	if changed.status != 200 || changed.header.Get("ETag") == tag {
		t.Errorf("%d, ETag %q, before %q", changed.status, changed.header.Get("ETag"), tag)
	}
	for _, old := range []string{tag, `"other"`, `W/` + changed.header.Get("ETag"), ""} {
		want := map[bool]int{true: 412, false: 200}[old != ""]
		if got := match("PATCH", old, `{"description":"two"}`); got.status != want {
			t.Errorf("PATCH with If-Match %q: %d, want %d", old, got.status, want)
		}
	}
	if got := match("DELETE", tag, ""); got.status != 412 {
		t.Errorf("DELETE with the first ETag: %d", got.status)
	}
	rotated := a.call(t, "POST", path+"/rotate-secret", "")
	if now := a.call(t, "GET", path, "").header.Get("ETag"); rotated.header.Get("ETag") != now {
		t.Errorf("after a rotation %q, the answer said %q", now, rotated.header.Get("ETag"))
	}
	if got := match("PATCH", `"x", `+rotated.header.Get("ETag"), `{"description":"three"}`); got.status != 200 {
		t.Errorf("one of several: %d", got.status)
	}
	if got := match("DELETE", "*", ""); got.status != 204 {
		t.Errorf("any: %d", got.status)
	}
	if got := match("DELETE", "*", ""); got.status != 404 {
		t.Errorf("none is left: %d", got.status)
	}
}

// TestNothingIsIgnored: what a call does not know is refused, and so is an empty list,
// which would mean everything or nothing.
func TestNothingIsIgnored(t *testing.T) {
	t.Parallel()
	a := setup(t)
	for _, tt := range []struct{ method, path, body, field string }{
		{"GET", "/listeners?evnt=READY", "", "evnt"},
		{"GET", "/listeners?limit=1&offset=2", "", "offset"},
		{"POST", "/listeners?dry_run=1", `{"event":"READY","url":"https://example.com/n"}`, "dry_run"},
		{"POST", "/listeners", `{"event":"READY","url":"https://example.com/n","filter":{"guild_ids":[]}}`, "filter.guild_ids"},
		{"POST", "/listeners", `{"event":"READY","url":"https://example.com/n","filter":{"channel_ids":[]}}`, "filter.channel_ids"},
		{"POST", "/listeners", `{"event":"READY","url":"https://example.com/n","filter":{"guild_ids":["1"],"user_ids":[]}}`, "filter.user_ids"},
	} {
		got := a.call(t, tt.method, tt.path, tt.body)
		if got.status != http.StatusBadRequest || deref(got.problem.Field) != tt.field {
			t.Errorf("%s %s %s: %d, field %q: %s", tt.method, tt.path, tt.body, got.status, deref(got.problem.Field), got.problem.Detail)
		}
	}
}
