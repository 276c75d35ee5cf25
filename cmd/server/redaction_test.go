package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// The tokens have an escape in them, so that a payload that was encoded again
// is not the same. Their beginnings must not be found either: a response may
// be cut off in the middle of one.
const (
	interactionToken = `aW50ZXJhY3Rpb24tc2VjcmV0-interaction\/of-the-tests`
	uselessToken     = `dXNlbGVzcy1pbnRlcmFjdGlvbg-interaction\/without-an-id`
	voiceToken       = `dm9pY2Utc2VydmVyLXNlY3JldA-voice\/of-the-tests`
)

// unreadable is what of the tokens nobody may read, and of those of the samples.
func unreadable() []string {
	return []string{interactionToken[:12], uselessToken[:12], voiceToken[:12], "aW50ZXJhY3Rpb246aW52", "invented-voice"}
}

// echo is a callback that answers by what it got, and notes that.
type echo struct {
	*httptest.Server
	format string
	fails  bool

	mu   sync.Mutex
	came map[string][]string // bodies, by gatehook-event
}

// newEcho starts a callback that writes whatever answer makes of the request's
// body to the connection, be it HTTP or not, and closes it.
func newEcho(t *testing.T, format string, fails bool, answer func(body string) string) *echo {
	t.Helper()
	e := &echo{format: format, fails: fails, came: map[string][]string{}}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // cut off, and made again
		}
		e.mu.Lock()
		name := r.Header.Get("Gatehook-Event")
		e.came[name] = append(e.came[name], string(body))
		e.mu.Unlock()
		var conn net.Conn
		if conn, _, err = http.NewResponseController(w).Hijack(); err != nil {
			t.Error(err)
			return
		}
		// The sender may have gone at the same time.
		_, _ = io.WriteString(conn, answer(string(body)))
		_ = conn.Close()
	}))
	t.Cleanup(e.Close)
	return e
}

// bodies are those that came under a name.
func (e *echo) bodies(name string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.came[name])
}

func respond(status int, body string) string {
	return fmt.Sprintf("HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", status, http.StatusText(status), len(body), body)
}

// echoes are callbacks of every kind that could put a token where people read.
func echoes(t *testing.T) map[string]*echo {
	t.Helper()
	atToken := func(body string) int {
		return strings.Index(body, `\/`) + 1 // within every token; 0 in what has none
	}
	accept := func(string) string { return respond(http.StatusNoContent, "") }
	fail := func(body string) string { return respond(http.StatusInternalServerError, body) }
	// From the token on, which may be behind what of a response is kept.
	quote := func(body string) string { return fail(body[max(0, strings.Index(body, `"token"`)):]) }
	return map[string]*echo{
		"accepts":                newEcho(t, "standard", false, accept),
		"accepts as discord":     newEcho(t, "discord", false, accept),
		"accepts as chat-sdk":    newEcho(t, "chat-sdk", false, accept),
		"fails":                  newEcho(t, "standard", true, quote),
		"fails as discord":       newEcho(t, "discord", true, quote),
		"fails as chat-sdk":      newEcho(t, "chat-sdk", true, quote),
		"closes the connection":  newEcho(t, "standard", true, func(string) string { return "" }),
		"answers with no HTTP":   newEcho(t, "standard", true, func(body string) string { return body + "\r\n\r\n" }),
		"has a malformed header": newEcho(t, "standard", true, func(body string) string { return "HTTP/1.1 200 OK\r\n" + body + "\r\n\r\n" }),
		// net/http remarks on what comes after a response that can have no body.
		"has a body behind a 204": newEcho(t, "standard", false, func(body string) string { return "HTTP/1.1 204 No Content\r\n\r\n" + body }),
		// The kept part of the response ends in the middle of the token,
		"is longer than what is kept": newEcho(t, "standard", true, func(body string) string {
			return fail(strings.Repeat(" ", max(0, 1024-atToken(body))) + body)
		}),
		// or the response itself does.
		"ends in the middle": newEcho(t, "standard", true, func(body string) string {
			return fail(body)[:len(fail(body))-len(body)+atToken(body)]
		}),
	}
}

// TestTokensAreNotShown: the tokens of interactions and of voice servers come
// to every callback byte for byte, whatever its format, and are nowhere else
// where people read: not in the log, the metrics or what the API tells of
// deliveries, however a callback echoes them. Only the stored event itself has
// them.
func TestTokensAreNotShown(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+postgrestest.URL(t), "GATEHOOK_RETRY_SCHEDULE=10ms,10ms,10ms")
	p.start()
	awaitReady(t, discord)
	const (
		interaction, voice = "INTERACTION_CREATE", "VOICE_SERVER_UPDATE"
		useful             = `{ "id":"1", "application_id":"1001","type":1, "token" : "` + interactionToken + `","version":1}`
		useless            = `{ "application_id":"1001","type":1, "token" : "` + uselessToken + `","version":1}`
		server             = `{ "token" : "` + voiceToken + `", "guild_id":"1","endpoint":null}`
	)
	callbacks := echoes(t)
	var listeners []echoing
	register := func(what, event string, deliveries int) {
		t.Helper()
		body := fmt.Sprintf(`{"event":%q,"url":%q,"format":%q,"verify":false,"max_age":"1h"}`, event, callbacks[what].URL, callbacks[what].format)
		id := decode[struct{ ID string }](t, p, "POST", "/listeners", body, http.StatusCreated).ID
		listeners = append(listeners, echoing{id, what, callbacks[what].fails, deliveries})
	}
	for what := range callbacks {
		for _, form := range []string{"", "RAW_"} {
			register(what, form+interaction, 3) // two, and a test
			register(what, form+voice, 2)
		}
	}
	register("accepts", "GATEHOOK_DELIVERY_EXHAUSTED", 2)
	for _, sent := range [][2]string{{interaction, useful}, {interaction, useless}, {voice, server}} {
		if _, err := discord.Dispatch(0, sent[0], []byte(sent[1])); err != nil {
			t.Fatal(err)
		}
	}
	people := people{t, p}
	for _, l := range listeners {
		tried := people.read(http.MethodPost, "/listeners/"+l.id+"/test", http.StatusOK)
		if l.fails && strings.Contains(tried, `"delivered":true`) {
			t.Errorf("a test of one that %s: %s", l.what, tried)
		}
	}
	for _, l := range listeners {
		people.readDeliveries(l)
	}

	for what, c := range callbacks {
		for name, payloads := range map[string][]string{
			"RAW_" + interaction: {useful, useless}, "RAW_" + voice: {server},
			interaction: {`"token" : "` + interactionToken + `"`}, voice: {`"token" : "` + voiceToken + `"`},
		} {
			for _, want := range payloads {
				if !slices.ContainsFunc(c.bodies(name), func(body string) bool { return strings.Contains(body, want) }) {
					t.Errorf("one that %s: %s came without %s: %q", what, name, want, c.bodies(name))
				}
			}
		}
	}
	told := strings.Join(callbacks["accepts"].bodies("GATEHOOK_DELIVERY_EXHAUSTED"), "\n")
	if told == "" {
		t.Error("no GATEHOOK_DELIVERY_EXHAUSTED came")
	}
	people.check("GATEHOOK_DELIVERY_EXHAUSTED", told)
	people.read(http.MethodGet, "/metrics", http.StatusOK)
	people.read(http.MethodGet, "/shards", http.StatusOK)
	people.read(http.MethodGet, "/listeners?limit=100", http.StatusOK)
	p.stop(syscall.SIGTERM)
	if !strings.Contains(p.output(), `"outcome":"unparsable"`) || !strings.Contains(p.output(), `"outcome":"exhausted"`) {
		t.Error("the log does not tell of what failed")
	}
	people.check("the log", p.output())
}

// echoing is the listener of an echo.
type echoing struct {
	id, what   string
	fails      bool
	deliveries int // at least
}

// people read all that the API shows, and may see no token.
type people struct {
	t *testing.T
	p *process
}

// check fails if a text has a token.
func (s people) check(where, text string) {
	s.t.Helper()
	for _, token := range unreadable() {
		if i := strings.Index(text, token); i >= 0 {
			s.t.Errorf("%s has a token: …%s", where, text[max(0, i-200):min(len(text), i+100)])
		}
	}
}

// read makes a call whose answer may have no token.
func (s people) read(method, path string, want int) (answer string) {
	s.t.Helper()
	status, answer := s.p.call(method, path, "")
	if status != want {
		s.t.Errorf("%s %s: %d %s", method, path, status, answer)
	}
	s.check(method+" "+path, answer)
	return answer
}

// readDeliveries waits until all deliveries of a listener are made or have
// failed, and reads each.
func (s people) readDeliveries(l echoing) {
	s.t.Helper()
	path := "/listeners/" + l.id + "/deliveries"
	var page deliveryPage
	eventually(s.t, time.Minute, "made or failed", func() (bool, string) {
		page = decode[deliveryPage](s.t, s.p, http.MethodGet, path, "", http.StatusOK)
		waits := slices.ContainsFunc(page.Data, func(d deliveryShown) bool { return d.Status == "pending" })
		return len(page.Data) >= l.deliveries && !waits, fmt.Sprintf("one that %s: %+v", l.what, page.Data)
	})
	s.read(http.MethodGet, path, http.StatusOK)
	s.read(http.MethodGet, path+"?cursor=x", http.StatusBadRequest)
	for _, d := range page.Data {
		detail := s.read(http.MethodGet, "/deliveries/"+d.ID, http.StatusOK)
		if strings.HasPrefix(l.what, "fails") && d.Status == "exhausted" && !strings.Contains(detail, `\"[redacted]\"`) {
			s.t.Errorf("one that %s: its response is not shown: %s", l.what, detail)
		}
		if d.Event == "GATEHOOK_DELIVERY_EXHAUSTED" {
			continue
		}
		if _, stored := s.p.get("/events/" + d.EventID); !slices.ContainsFunc(unreadable(), func(token string) bool { return strings.Contains(stored, token) }) {
			s.t.Errorf("the stored event is not as received: %s", stored)
		}
	}
}
