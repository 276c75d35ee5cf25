package delivery

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

func testEvent() *event.Event {
	return &event.Event{
		ID: event.DispatchID(1, "s", event.Shard{ID: 2, Count: 5}, 9), Name: "GUILD_BAN_ADD", Shard: event.Shard{ID: 2, Count: 5}, Seq: 9,
		ReceivedAt: time.Date(2026, 1, 2, 3, 4, 5, 678000000, time.FixedZone("", 3600)),
		Data:       []byte("{\"a\" : 1.50e+3,\t\"b\":\"\\u00e9\\/\\ud83d\"}"),
	}
}

func TestBodies(t *testing.T) {
	t.Parallel()
	data := string(testEvent().Data)
	tests := []struct {
		event  string
		format event.Format
		want   string
	}{
		{
			"RAW_*", event.FormatStandard,
			`{"type":"RAW_GUILD_BAN_ADD","timestamp":"2026-01-02T02:04:05.678Z","id":"` + testEvent().ID.String() + `","shard":[2,5],"seq":9,"data":` + data + `}`,
		},
		{
			"GUILD_*", event.FormatStandard,
			`{"type":"GUILD_BAN_ADD","timestamp":"2026-01-02T02:04:05.678Z","id":"` + testEvent().ID.String() + `","shard":[2,5],"seq":9,"data":` + data + `}`,
		},
		{
			"GUILD_BAN_ADD", event.FormatDiscord,
			`{"version":1,"application_id":"1001","type":1,"event":{"type":"GUILD_BAN_ADD","timestamp":"2026-01-02T02:04:05.678Z","data":` + data + `}}`,
		},
		{
			"RAW_*", event.FormatDiscord,
			`{"version":1,"application_id":"1001","type":1,"event":{"type":"RAW_GUILD_BAN_ADD","timestamp":"2026-01-02T02:04:05.678Z","data":` + data + `}}`,
		},
		{"GUILD_BAN_ADD", event.FormatChatSDK, `{"type":"GATEWAY_GUILD_BAN_ADD","timestamp":1767319445678,"data":` + data + `}`},
	}
	for _, tt := range tests {
		e := testEvent()
		l := &event.Listener{Event: tt.event, Format: tt.format}
		got := string(bodyIn(l, deliveredName(l, e), e, e.Data, 1001))
		if got != tt.want || !json.Valid([]byte(got)) {
			t.Errorf("%s, %s:\n got %s\nwant %s", tt.event, tt.format, got, tt.want)
		}
	}
	created := testEvent()
	created.Origin = event.OriginJoin
	if b := string(bodyIn(&event.Listener{}, "GUILD_CREATE", created, nil, 0)); !strings.Contains(b, `"seq":9,"origin":"join","data":null}`) {
		t.Errorf("with an origin: %s", b)
	}
	odd := &event.Event{Name: "A\"\\\x01\n€"}
	var envelope struct{ Type string }
	if b := bodyIn(&event.Listener{}, odd.Name, odd, nil, 0); json.Unmarshal(b, &envelope) != nil || envelope.Type != odd.Name {
		t.Errorf("an odd name: %s", b)
	}
}

// received is a delivery as a callback received it.
type received struct{ name, data string }

// acceptAll is a callback that accepts every delivery and passes it to got.
func acceptAll(t *testing.T) (url string, got <-chan received) {
	t.Helper()
	ch := make(chan received, 100)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Data json.RawMessage }
		b, err := io.ReadAll(r.Body)
		if err != nil || json.Unmarshal(b, &body) != nil {
			t.Errorf("%v: %s", err, b)
		}
		ch <- received{r.Header.Get("gatehook-event"), string(body.Data)}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(srv.Close)
	return srv.URL, ch
}

func next(t *testing.T, got <-chan received) received {
	t.Helper()
	select {
	case c := <-got:
		return c
	case <-time.After(30 * time.Second):
		t.Fatal("no delivery was received")
		return received{}
	}
}

// A listener of raw events gets the bytes that Discord sent; a listener of parsed
// events gets the model. An event that can't be parsed still reaches the first
// listener. For the second, it waits with the reason until it is retried.
func TestParsedAndRaw(t *testing.T) {
	t.Parallel()
	parsedURL, parsed := acceptAll(t)
	rawURL, raw := acceptAll(t)
	b := setup(t, Config{}, parsedURL, rawURL)
	b.registry.change(2, func(l *event.Listener) { l.Event = "RAW_MESSAGE_*" })

	const whole, useless = ` {"id":7,"channel_id":"2","author":{"id":"3"},"new":1e1}`, `{"id":"7","channel_id":"2","author":{}}`
	for _, data := range []string{whole, useless} {
		batch := b.commit(t, 1, 1, 1, 2)
		batch.Events[0].Data = []byte(data)
		if _, err := b.pool.Exec(t.Context(), `UPDATE events SET data = $1 WHERE batch_id = $2`, data, batch.ID); err != nil {
			t.Fatal(err)
		}
		b.deliver(t, batch)
		if got := next(t, raw); got.name != "RAW_MESSAGE_CREATE" || got.data != strings.TrimSpace(data) {
			t.Errorf("raw: %v", got)
		}
		if data == whole {
			want, err := event.Parse(nil, "MESSAGE_CREATE", []byte(data))
			if got := next(t, parsed); err != nil || got.name != "MESSAGE_CREATE" || got.data != strings.TrimSpace(string(want)) {
				t.Errorf("parsed: %v, %v", got, err)
			}
		}
		<-b.settled
	}
	b.stop() // everything is recorded
	var state, reason string
	if err := b.pool.QueryRow(t.Context(), `SELECT r.state, a.error FROM retries r JOIN attempts a USING (batch_id, ordinal, listener_id)`).
		Scan(&state, &reason); err != nil {
		t.Fatal(err)
	}
	if state != "unparsable" || reason != "MESSAGE_CREATE can't be parsed: author.id is missing" {
		t.Errorf("the state is %q, the reason %q", state, reason)
	}
	// An upgrade could parse the event. Here the payload changes instead.
	if _, err := b.pool.Exec(t.Context(), `UPDATE events SET data = $1 WHERE data = $2`, []byte(whole), []byte(useless)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.pool.Exec(t.Context(), `UPDATE retries SET state = 'pending', due_at = now()`); err != nil {
		t.Fatal(err)
	}
	b.open(t, Config{AllowTargets: loopback}, 1)
	if got := next(t, parsed); !strings.Contains(got.data, `"referenced_message":null`) {
		t.Errorf("the retried delivery is %v", got)
	}
	b.stop()
	if n := b.count(t, `SELECT count(*) FROM retries`); n != 0 {
		t.Errorf("%d deliveries still wait", n)
	}
}

// Listeners of raw events come first, regardless of their numbers.
func TestRawFirst(t *testing.T) {
	t.Parallel()
	b := &Delivery{listeners: &registry{m: map[int64]*event.Listener{
		1: {Event: "*"}, 2: {Event: "RAW_*"}, 3: {Event: "READY"}, 4: {Event: "RAW_READY"},
	}}}
	got := b.rawFirst([]int64{1, 2, 3, 4, 5})
	for i, want := range []int64{2, 4, 1, 3, 5} {
		if got[i] != want {
			t.Fatalf("the order is %v", got)
		}
	}
}

// An event is parsed once, and its body is made once, however many listeners it has.
func TestParsedOnce(t *testing.T) {
	t.Parallel()
	e := &event.Stored{Event: event.Event{Name: "GUILD_DELETE", Data: []byte(`{"id":"1"}`)}}
	j := job{stored: e, bodies: &bodies{}}
	bodyFor := func(l event.Listener) []byte {
		body, err := j.body(&l, 1001)
		if err != nil {
			t.Fatal(err)
		}
		if want := bodyIn(&l, deliveredName(&l, &e.Event), &e.Event, dataOf(t, &l, e), 1001); string(body) != string(want) {
			t.Errorf("%+v: %s, want %s", l, body, want)
		}
		return body
	}
	if one, two := bodyFor(event.Listener{Event: "*"}), bodyFor(event.Listener{Event: "GUILD_DELETE"}); &one[0] != &two[0] {
		t.Error("the parsed body was made twice")
	}
	if one, two := bodyFor(event.Listener{Event: "RAW_*"}), bodyFor(event.Listener{Event: "RAW_GUILD_DELETE"}); &one[0] != &two[0] {
		t.Error("the raw body was made twice")
	}
	bodyFor(event.Listener{Event: "*", Format: event.FormatDiscord})
	bodyFor(event.Listener{Event: "RAW_*", Format: event.FormatChatSDK})
	e.Name, e.Data, j.bodies = "RESUMED", nil, &bodies{} // without a model, and without data
	bodyFor(event.Listener{Event: "*"})
	bodyFor(event.Listener{Event: "RAW_*"})
	bodyFor(event.Listener{Event: "*", Format: event.FormatChatSDK})
}

func dataOf(t *testing.T, l *event.Listener, e *event.Stored) []byte {
	t.Helper()
	if isRaw(l) {
		return e.Data
	}
	model, err := event.Parse(nil, e.Name, e.Data)
	if err != nil {
		t.Fatal(err)
	}
	return model
}

// bodyIn returns the body in the listener's format, made anew.
func bodyIn(l *event.Listener, name string, e *event.Event, data []byte, application event.Snowflake) []byte {
	if write := formats[l.Format]; write != nil {
		return write(nil, name, e, data, application)
	}
	return append(appendData(appendHead(nil, name, e), data), '}')
}

// BenchmarkBody makes the body of an event for its first parsed listener.
func BenchmarkBody(b *testing.B) {
	e := &event.Stored{Event: *testEvent()}
	e.Name = "MESSAGE_CREATE"
	e.Data, _ = event.Sample(e.Name)
	l := &event.Listener{Event: e.Name, Format: event.FormatStandard}
	b.ReportAllocs()
	for b.Loop() {
		j := job{stored: e, bodies: new(bodies)}
		if _, err := j.body(l, 1001); err != nil {
			b.Fatal(err)
		}
	}
}
