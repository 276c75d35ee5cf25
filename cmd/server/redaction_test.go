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

// The tokens contain an escape, which a payload that was encoded again would
// lose. Their beginnings are secret too: a response may be cut off within a token.
const (
	interactionToken = `aW50ZXJhY3Rpb24tc2VjcmV0-interaction\/of-the-tests`
	uselessToken     = `dXNlbGVzcy1pbnRlcmFjdGlvbg-interaction\/without-an-id`
	voiceToken       = `dm9pY2Utc2VydmVyLXNlY3JldA-voice\/of-the-tests`
)

// secretParts returns the beginnings of the tokens, and of those in the samples,
// which must not be shown anywhere.
func secretParts() []string {
	return []string{interactionToken[:12], uselessToken[:12], voiceToken[:12], "aW50ZXJhY3Rpb246aW52", "invented-voice"}
}

// echo is a callback that records its requests and may quote them in its answer.
type echo struct {
	*httptest.Server
	format string
	fails  bool

	mu       sync.Mutex          // guards received
	received map[string][]string // the bodies, by gatehook-event
}

// newEcho starts a callback that passes each body to answer, writes the result to
// the connection, whether or not it is HTTP, and closes the connection.
func newEcho(t *testing.T, format string, fails bool, answer func(body string) string) *echo {
	t.Helper()
	e := &echo{format: format, fails: fails, received: map[string][]string{}}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the request was cut off and will be repeated
		}
		e.mu.Lock()
		name := r.Header.Get("Gatehook-Event")
		e.received[name] = append(e.received[name], string(body))
		e.mu.Unlock()
		var conn net.Conn
		if conn, _, err = http.NewResponseController(w).Hijack(); err != nil {
			t.Error(err)
			return
		}
		// The sender may have closed the connection by now.
		_, _ = io.WriteString(conn, answer(string(body)))
		_ = conn.Close()
	}))
	t.Cleanup(e.Close)
	return e
}

// bodies returns the bodies received for an event name.
func (e *echo) bodies(name string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.received[name])
}

func respond(status int, body string) string {
	return fmt.Sprintf("HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", status, http.StatusText(status), len(body), body)
}

// echoes returns callbacks that try in every way to make the server show a token.
func echoes(t *testing.T) map[string]*echo {
	t.Helper()
	atToken := func(body string) int {
		return strings.Index(body, `\/`) + 1 // within a token; 0 if the body has none
	}
	accept := func(string) string { return respond(http.StatusNoContent, "") }
	fail := func(body string) string { return respond(http.StatusInternalServerError, body) }
	// Quotes from the token on, which may be beyond the kept part of the body.
	quote := func(body string) string { return fail(body[max(0, strings.Index(body, `"token"`)):]) }
	return map[string]*echo{
		"accepts":                newEcho(t, "standard", false, accept),
		"accepts as discord":     newEcho(t, "discord", false, accept),
		"accepts as chat-sdk":    newEcho(t, "chat-sdk", false, accept),
		"fails":                  newEcho(t, "standard", true, quote),
		"fails as discord":       newEcho(t, "discord", true, quote),
		"fails as chat-sdk":      newEcho(t, "chat-sdk", true, quote),
		"closes the connection":  newEcho(t, "standard", true, func(string) string { return "" }),
		"answers without HTTP":   newEcho(t, "standard", true, func(body string) string { return body + "\r\n\r\n" }),
		"has a malformed header": newEcho(t, "standard", false, func(body string) string { return "HTTP/1.1 200 OK\r\n" + body + "\r\n\r\n" }),
		"has a malformed status": newEcho(t, "standard", true, func(body string) string { return "HTTP/1.1 " + body + "\r\n\r\n" }),
		"has two lengths": newEcho(t, "standard", true, func(body string) string {
			return "HTTP/1.1 200 OK\r\nX: " + body + "\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n" + body
		}),
		// net/http logs bytes that follow a response without a body.
		"sends a body after a 204": newEcho(t, "standard", false, func(body string) string { return "HTTP/1.1 204 No Content\r\n\r\n" + body }),
		// The kept part of the response ends within the token.
		"sends more than is kept": newEcho(t, "standard", true, func(body string) string {
			return fail(strings.Repeat(" ", max(0, 1024-atToken(body))) + body)
		}),
		// The response itself ends within the token.
		"is cut off within the token": newEcho(t, "standard", true, func(body string) string {
			return fail(body)[:len(fail(body))-len(body)+atToken(body)]
		}),
	}
}

// TestTokensAreNotShown checks that every callback, in any format, receives the
// tokens of interactions and voice servers byte for byte. Apart from these POSTs, only
// the stored event may show them: not the log, the metrics or the API's deliveries,
// however a callback echoes them.
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
			register(what, form+interaction, 3) // two events and a test
			register(what, form+voice, 2)
		}
	}
	register("accepts", "GATEHOOK_DELIVERY_EXHAUSTED", 2)
	for _, sent := range [][2]string{{interaction, useful}, {interaction, useless}, {voice, server}} {
		if _, err := discord.Dispatch(0, sent[0], []byte(sent[1])); err != nil {
			t.Fatal(err)
		}
	}
	inspector := inspector{t, p}
	for _, l := range listeners {
		tried := inspector.read(http.MethodPost, "/listeners/"+l.id+"/test", http.StatusOK)
		if l.fails && strings.Contains(tried, `"delivered":true`) {
			t.Errorf("a test of the callback that %s: %s", l.what, tried)
		}
	}
	for _, l := range listeners {
		inspector.readDeliveries(l)
	}

	for what, c := range callbacks {
		for name, payloads := range map[string][]string{
			"RAW_" + interaction: {useful, useless}, "RAW_" + voice: {server},
			interaction: {`"token" : "` + interactionToken + `"`}, voice: {`"token" : "` + voiceToken + `"`},
		} {
			for _, want := range payloads {
				if !slices.ContainsFunc(c.bodies(name), func(body string) bool { return strings.Contains(body, want) }) {
					t.Errorf("the callback that %s: %s does not contain %s: %q", what, name, want, c.bodies(name))
				}
			}
		}
	}
	reported := strings.Join(callbacks["accepts"].bodies("GATEHOOK_DELIVERY_EXHAUSTED"), "\n")
	if reported == "" {
		t.Error("no GATEHOOK_DELIVERY_EXHAUSTED arrived")
	}
	inspector.check("GATEHOOK_DELIVERY_EXHAUSTED", reported)
	inspector.read(http.MethodGet, "/metrics", http.StatusOK)
	inspector.read(http.MethodGet, "/shards", http.StatusOK)
	inspector.read(http.MethodGet, "/listeners?limit=100", http.StatusOK)
	p.stop(syscall.SIGTERM)
	if !strings.Contains(p.output(), `"outcome":"unparsable"`) || !strings.Contains(p.output(), `"outcome":"exhausted"`) {
		t.Error("the log does not report the failed deliveries")
	}
	inspector.check("the log", p.output())
}

// echoing is a listener whose callback is an echo.
type echoing struct {
	id, what   string
	fails      bool
	deliveries int // the least number of deliveries to expect
}

// inspector reads everything that the API shows, which must contain no token.
type inspector struct {
	t *testing.T
	p *process
}

// check fails the test if a text contains a token.
func (s inspector) check(where, text string) {
	s.t.Helper()
	for _, token := range secretParts() {
		if i := strings.Index(text, token); i >= 0 {
			s.t.Errorf("%s contains a token: …%s", where, text[max(0, i-200):min(len(text), i+100)])
		}
	}
}

// read makes a call and checks its answer.
func (s inspector) read(method, path string, want int) (answer string) {
	s.t.Helper()
	status, answer := s.p.call(method, path, "")
	if status != want {
		s.t.Errorf("%s %s: %d %s", method, path, status, answer)
	}
	s.check(method+" "+path, answer)
	return answer
}

// readDeliveries waits until no delivery of a listener is pending, and reads each
// of them.
func (s inspector) readDeliveries(l echoing) {
	s.t.Helper()
	path := "/listeners/" + l.id + "/deliveries"
	var page deliveryPage
	eventually(s.t, time.Minute, "all delivered or failed", func() (bool, string) {
		page = decode[deliveryPage](s.t, s.p, http.MethodGet, path, "", http.StatusOK)
		waits := slices.ContainsFunc(page.Data, func(d deliveryShown) bool { return d.Status == "pending" })
		return len(page.Data) >= l.deliveries && !waits, fmt.Sprintf("the callback that %s: %+v", l.what, page.Data)
	})
	s.read(http.MethodGet, path, http.StatusOK)
	s.read(http.MethodGet, path+"?cursor=x", http.StatusBadRequest)
	for _, d := range page.Data {
		detail := s.read(http.MethodGet, "/deliveries/"+d.ID, http.StatusOK)
		if strings.HasPrefix(l.what, "fails") && d.Status == "exhausted" && !strings.Contains(detail, `\"[redacted]\"`) {
			s.t.Errorf("the callback that %s: its response is not shown: %s", l.what, detail)
		}
		if d.Event == "GATEHOOK_DELIVERY_EXHAUSTED" {
			continue
		}
		if _, stored := s.p.get("/events/" + d.EventID); !slices.ContainsFunc(secretParts(), func(token string) bool { return strings.Contains(stored, token) }) {
			s.t.Errorf("the stored event is not as received: %s", stored)
		}
	}
}
