package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// decode calls the API, which must answer with the status want, and decodes the
// answer.
func decode[T any](t *testing.T, p *process, method, path, body string, want int) (answer T) {
	t.Helper()
	status, got := p.call(method, path, body)
	if status != want {
		t.Fatalf("%s %s: %d %s", method, path, status, got)
	}
	if got != "" {
		if err := json.Unmarshal([]byte(got), &answer); err != nil {
			t.Fatalf("%s %s: %v: %s", method, path, err, got)
		}
	}
	return answer
}

type attemptShown struct {
	Attempt         int
	Status          *int
	Delivered       bool
	Error, Response *string
	DeliveryID      string `json:"delivery_id"`
	EventID         string `json:"event_id"`
	Event           string
}

type deliveryShown struct {
	ID, Event, Status string
	EventID           string    `json:"event_id"`
	ReceivedAt        time.Time `json:"received_at"`
	ListenerID        string    `json:"listener_id"`
	AttemptCount      int       `json:"attempt_count"`
	NextAttemptAt     *string   `json:"next_attempt_at"`
	LastAttempt       *attemptShown
	Attempts          []attemptShown
}

type deliveryPage struct {
	Data       []deliveryShown
	NextCursor *string `json:"next_cursor"`
}

// switchable is a callback whose answer can be switched. It records its POSTs.
type switchable struct {
	*httptest.Server
	mu      sync.Mutex // guards the fields below
	status  int
	headers []http.Header
	bodies  []string
}

func newSwitchable(t *testing.T) *switchable {
	t.Helper()
	s := &switchable{status: http.StatusNoContent}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.headers, s.bodies = append(s.headers, r.Header.Clone()), append(s.bodies, string(body))
		w.WriteHeader(s.status)
		if s.status >= 400 {
			_, _ = w.Write([]byte("out of order"))
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *switchable) answer(status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = status
}

// ids returns the webhook-ids of the POSTs so far.
func (s *switchable) ids() (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.headers {
		ids = append(ids, h.Get("Webhook-Id"))
	}
	return ids
}

// TestDeliveriesAreOperated operates listeners through the API: it tests them with
// a sample, inspects failed deliveries with their attempts and responses, retries
// one, replays a span of time, and rotates a secret.
func TestDeliveriesAreOperated(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+postgrestest.URL(t), "GATEHOOK_RETRY_SCHEDULE=10ms")
	p.start()
	awaitReady(t, discord)
	good, bad := newSwitchable(t), newSwitchable(t)
	bad.answer(http.StatusInternalServerError)
	type listener struct{ ID, Secret string }
	register := func(eventName string, to *switchable) listener {
		t.Helper()
		return decode[listener](t, p, "POST", "/listeners", fmt.Sprintf(`{"event":%q,"url":%q}`, eventName, to.URL), http.StatusCreated)
	}
	first := register("RAW_MESSAGE_CREATE", good)
	second := register("MESSAGE_*", bad)

	start := time.Now().UTC().Add(-time.Second) // receipts are by the database's clock
	// A sample, delivered now, to a callback that accepts it and to one that fails.
	tried := decode[attemptShown](t, p, "POST", "/listeners/"+first.ID+"/test", "", http.StatusOK)
	if !tried.Delivered || tried.Attempt != 1 || tried.Event != "RAW_MESSAGE_CREATE" || len(good.ids()) != 1 || good.ids()[0] != tried.DeliveryID {
		t.Errorf("test: %+v, received %v", tried, good.ids())
	}
	tried = decode[attemptShown](t, p, "POST", "/listeners/"+second.ID+"/test", "", http.StatusOK)
	if tried.Delivered || tried.Status == nil || *tried.Status != 500 || tried.Response == nil || *tried.Response != "out of order" {
		t.Errorf("test of a callback that fails: %+v", tried)
	}

	var payloads []string
	for i := range 7 {
		payloads = append(payloads, fmt.Sprintf(`{ "id":"%d", "channel_id":"2","author":{"id":"3"},"content":"\u2764" }`, i+1))
		if _, err := discord.Dispatch(0, "MESSAGE_CREATE", []byte(payloads[i])); err != nil {
			t.Fatal(err)
		}
	}
	list := func(id, query string) deliveryPage {
		t.Helper()
		return decode[deliveryPage](t, p, "GET", "/listeners/"+id+"/deliveries?"+query, "", http.StatusOK)
	}
	eventually(t, time.Minute, "all delivered or exhausted", func() (bool, string) {
		a, b := len(list(first.ID, "status=delivered").Data), len(list(second.ID, "status=exhausted").Data)
		return a == 8 && b == 8, fmt.Sprint(a, " and ", b)
	})
	if n := len(list(second.ID, "status=delivered").Data) + len(list(second.ID, "status=pending").Data); n != 0 {
		t.Errorf("%d deliveries of the failing listener are delivered or pending", n)
	}

	// Pages list every delivery once, in the same order whatever their size.
	all := list(second.ID, "").Data
	var paged []deliveryShown
	for query := "limit=3"; ; {
		page := list(second.ID, query)
		paged = append(paged, page.Data...)
		if page.NextCursor == nil {
			break
		}
		query = "limit=3&cursor=" + url.QueryEscape(*page.NextCursor)
	}
	if len(all) != 8 || !slices.EqualFunc(all, paged, func(a, b deliveryShown) bool { return a.ID == b.ID }) {
		t.Errorf("%d deliveries, %d in pages", len(all), len(paged))
	}

	// One of them is retried on request, after the callback has recovered.
	one := all[0]
	detail := decode[deliveryShown](t, p, "GET", "/deliveries/"+one.ID, "", http.StatusOK)
	if detail.Status != "exhausted" || len(detail.Attempts) != 2 || detail.Attempts[1].Attempt != 2 || *detail.Attempts[1].Response != "out of order" {
		t.Errorf("%+v", detail)
	}
	stored := decode[struct {
		Data json.RawMessage
		Name string
	}](t, p, "GET", "/events/"+one.EventID, "", http.StatusOK)
	if _, body := p.call("GET", "/events/"+one.EventID, ""); stored.Name != "MESSAGE_CREATE" || !strings.Contains(body, payloads[6]) {
		t.Errorf("the stored event %s, want %s", body, payloads[6])
	}
	bad.answer(http.StatusNoContent)
	before := len(bad.ids())
	decode[deliveryShown](t, p, "POST", "/deliveries/"+one.ID+"/retry", "", http.StatusAccepted)
	eventually(t, time.Minute, "delivered", func() (bool, string) {
		d := decode[deliveryShown](t, p, "GET", "/deliveries/"+one.ID, "", http.StatusOK)
		return d.Status == "delivered", d.Status
	})
	if ids := bad.ids(); len(ids) != before+1 || ids[before] != one.ID {
		t.Errorf("received %v, want %s once", ids[before:], one.ID)
	}

	// The whole span of time is replayed, under the same ids. Test samples are not
	// replayed, since they are not events that happened.
	replayed := decode[struct{ Queued int }](t, p, "POST", "/listeners/"+second.ID+"/replay",
		fmt.Sprintf(`{"since":%q}`, start.Add(-time.Millisecond).Format(time.RFC3339Nano)), http.StatusAccepted)
	if replayed.Queued != 7 {
		t.Errorf("%d events queued again, want 7", replayed.Queued)
	}
	eventually(t, time.Minute, "replayed", func() (bool, string) {
		n := len(bad.ids())
		return n == before+1+7, fmt.Sprint(n, " arrived")
	})
	for _, id := range bad.ids()[before:] {
		if !slices.ContainsFunc(all, func(d deliveryShown) bool { return d.ID == id }) {
			t.Errorf("replayed under another id: %s", id)
		}
	}

	// After a rotation both secrets verify.
	rotated := decode[listener](t, p, "POST", "/listeners/"+first.ID+"/rotate-secret", "", http.StatusOK)
	if rotated.ID != first.ID || rotated.Secret == first.Secret {
		t.Errorf("rotated %+v", rotated)
	}
	decode[attemptShown](t, p, "POST", "/listeners/"+first.ID+"/test", "", http.StatusOK)
	good.mu.Lock()
	header, body := good.headers[len(good.headers)-1], good.bodies[len(good.bodies)-1]
	good.mu.Unlock()
	for name, secret := range map[string]string{"old": first.Secret, "new": rotated.Secret} {
		w, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Verify([]byte(body), header); err != nil {
			t.Errorf("the %s secret: %v", name, err)
		}
	}

	for _, tt := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/deliveries/dlv_1_1_1", "", 404},
		{"GET", "/deliveries/x", "", 404},
		{"POST", "/deliveries/x/retry", "", 404},
		{"GET", "/events/x", "", 404},
		{"GET", "/events/00000000-0000-0000-0000-000000000000", "", 404},
		{"POST", "/listeners/lst_zz/test", "", 404},
		{"POST", "/listeners/lst_zz/rotate-secret", "", 404},
		{"GET", "/listeners/lst_zz/deliveries", "", 404},
		{"GET", "/listeners/" + first.ID + "/deliveries?cursor=x", "", 400},
		{"GET", "/listeners/" + first.ID + "/deliveries?status=x", "", 400},
		{"POST", "/listeners/" + first.ID + "/replay", `{}`, 400},
		{"POST", "/listeners/" + first.ID + "/replay", `{"since":"2026-01-02T00:00:00Z","until":"2026-01-01T00:00:00Z"}`, 400},
		{"POST", "/listeners/" + first.ID + "/replay", `{"since":"yesterday"}`, 400},
	} {
		if status, body := p.call(tt.method, tt.path, tt.body); status != tt.status {
			t.Errorf("%s %s %s: %d %s", tt.method, tt.path, tt.body, status, body)
		}
	}
}

// TestSampleOfEveryEvent checks that a listener for any event can be tested with
// the documented sample of the event, raw and parsed.
func TestSampleOfEveryEvent(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+postgrestest.URL(t))
	p.start()
	awaitReady(t, discord)
	callback := newSwitchable(t)
	for _, typ := range event.Types() {
		for _, name := range []string{typ.Name, event.RawPrefix + typ.Name} {
			created := decode[struct{ ID string }](t, p, "POST", "/listeners", fmt.Sprintf(`{"event":%q,"url":%q}`, name, callback.URL), http.StatusCreated)
			tried := decode[attemptShown](t, p, "POST", "/listeners/"+created.ID+"/test", "", http.StatusOK)
			callback.mu.Lock()
			body := callback.bodies[len(callback.bodies)-1]
			callback.mu.Unlock()
			sample, ok := event.Sample(typ.Name)
			if !tried.Delivered || tried.Event != name || !strings.Contains(body, `"type":"`+name+`"`) {
				t.Errorf("%s: %+v, received %s", name, tried, body)
			}
			if ok != (typ.Group == event.GroupDispatch) || ok && name != typ.Name && !strings.HasSuffix(body, `"data":`+string(sample)+"}") {
				t.Errorf("%s: received %s, want the sample %s", name, body, sample)
			}
		}
	}
}

// TestDisabledListenerGetsWhatItMissed checks that a callback that answers 410 is
// disabled and its operator notified. Events that only it wants are kept, and
// delivered once it is enabled again and replayed.
func TestDisabledListenerGetsWhatItMissed(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+postgrestest.URL(t), "GATEHOOK_INTENTS=auto")
	p.start()
	awaitReady(t, discord)
	gone, operator := newSwitchable(t), newSwitchable(t)
	gone.answer(http.StatusGone)
	type listener struct {
		ID      string
		Enabled bool
		Reason  *string `json:"disabled_reason"`
	}
	l := decode[listener](t, p, "POST", "/listeners", fmt.Sprintf(`{"event":"GUILD_BAN_ADD","url":%q}`, gone.URL), http.StatusCreated)
	decode[listener](t, p, "POST", "/listeners", fmt.Sprintf(`{"event":"GATEHOOK_LISTENER_DISABLED","url":%q}`, operator.URL), http.StatusCreated)
	start := time.Now().UTC().Add(-time.Second) // receipts are by the database's clock
	ban := func() {
		t.Helper()
		eventually(t, time.Minute, "sent to a session with the intent", func() (bool, string) {
			_, err := discord.Dispatch(0, "GUILD_BAN_ADD", []byte(`{"guild_id":"1","user":{"id":"2","username":"a"}}`))
			return err == nil, fmt.Sprint(err)
		})
	}
	ban()
	eventually(t, time.Minute, "disabled", func() (bool, string) {
		now := decode[listener](t, p, "GET", "/listeners/"+l.ID, "", http.StatusOK)
		return !now.Enabled && now.Reason != nil && *now.Reason == "gone", fmt.Sprint(now)
	})
	eventually(t, time.Minute, "reported to the operator", func() (bool, string) { return len(operator.ids()) == 1, "" })
	operator.mu.Lock()
	if body := operator.bodies[0]; !strings.Contains(body, `"reason":"gone"`) || !strings.Contains(body, l.ID) {
		t.Errorf("reported %s", body)
	}
	operator.mu.Unlock()
	const missed = 5
	for range missed {
		ban()
	}
	gone.answer(http.StatusNoContent)
	before := len(gone.ids())
	decode[listener](t, p, "PATCH", "/listeners/"+l.ID, `{"enabled":true}`, http.StatusOK)
	eventually(t, time.Minute, "replaying all missed events", func() (bool, string) {
		replayed := decode[struct{ Queued int }](t, p, "POST", "/listeners/"+l.ID+"/replay",
			fmt.Sprintf(`{"since":%q}`, start.Format(time.RFC3339Nano)), http.StatusAccepted)
		return replayed.Queued >= missed, fmt.Sprint(replayed)
	})
	eventually(t, time.Minute, "all delivered", func() (bool, string) {
		different := slices.Compact(slices.Sorted(slices.Values(gone.ids()[before:])))
		return len(different) == missed+1, fmt.Sprint(different)
	})
}

// TestFailedDeliveriesAreRetried checks that failed deliveries are retried by
// status and time, under the same ids.
func TestFailedDeliveriesAreRetried(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+postgrestest.URL(t), "GATEHOOK_RETRY_SCHEDULE=10ms")
	p.start()
	awaitReady(t, discord)
	c := newSwitchable(t)
	c.answer(http.StatusInternalServerError)
	l := decode[struct{ ID string }](t, p, "POST", "/listeners", fmt.Sprintf(`{"event":"MESSAGE_CREATE","url":%q}`, c.URL), http.StatusCreated)
	var last time.Time // receipt
	exhausted := func(n int) (ids []string) {
		t.Helper()
		eventually(t, time.Minute, "exhausted", func() (bool, string) {
			page := decode[deliveryPage](t, p, "GET", "/listeners/"+l.ID+"/deliveries?status=exhausted", "", http.StatusOK)
			ids = ids[:0]
			for _, d := range page.Data {
				ids = append(ids, d.ID)
				if d.ReceivedAt.After(last) {
					last = d.ReceivedAt
				}
			}
			return len(ids) == n, fmt.Sprint(len(ids))
		})
		return ids
	}
	send := func(n int) {
		t.Helper()
		for range n {
			if _, err := discord.Dispatch(0, "MESSAGE_CREATE", []byte(`{"id":"1","channel_id":"2","author":{"id":"3"}}`)); err != nil {
				t.Fatal(err)
			}
		}
	}
	send(3)
	early := exhausted(3)
	between := last.Add(time.Microsecond).UTC().Format(time.RFC3339Nano)
	send(4)
	exhausted(7)
	c.answer(http.StatusNoContent)
	retry := func(body string, want int) {
		t.Helper()
		if got := decode[struct{ Queued int }](t, p, "POST", "/listeners/"+l.ID+"/retry", body, http.StatusAccepted); got.Queued != want {
			t.Errorf("%s: %d queued, want %d", body, got.Queued, want)
		}
	}
	retry(`{"status":["expired","unparsable"]}`, 0)
	retry(fmt.Sprintf(`{"status":["exhausted"],"since":"0001-01-01T00:00:00Z","until":%q}`, between), 3)
	exhausted(4)
	eventually(t, time.Minute, "delivered", func() (bool, string) { return len(c.ids()) == 2*7+3, fmt.Sprint(len(c.ids())) })
	if got := slices.Sorted(slices.Values(c.ids()[14:])); !slices.Equal(got, slices.Sorted(slices.Values(early))) {
		t.Errorf("retried: %v, want %v", got, early)
	}
	retry(fmt.Sprintf(`{"status":["exhausted","expired"],"since":%q}`, between), 4)
	exhausted(0)
	for _, body := range []string{`{}`, `{"status":[]}`, `{"status":["pending"]}`, `{"status":["exhausted"],"since":"2030-01-01T00:00:00Z"}`} {
		if status, got := p.call("POST", "/listeners/"+l.ID+"/retry", body); status/100 != 4 {
			t.Errorf("%s: %d %s", body, status, got)
		}
	}
}
