package discordtest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start starts a server for one test. IDENTIFYs are not limited unless the test
// sets a limit.
func start(t *testing.T, cfg discordtest.Config) *discordtest.Server {
	t.Helper()
	if cfg.IdentifyWindow == 0 {
		cfg.IdentifyWindow = time.Nanosecond
	}
	srv, err := discordtest.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	return srv
}

// within returns a context that bounds every wait of a test.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// payload is a payload that a client receives.
type payload struct {
	Op int             `json:"op"`
	S  *int64          `json:"s"`
	T  *string         `json:"t"`
	D  json.RawMessage `json:"d"`
}

// String names a payload in tests: by name and number for a dispatch, otherwise
// by op and d.
func (p payload) String() string {
	if p.Op == 0 && p.T != nil && p.S != nil {
		return fmt.Sprintf("%s %d", *p.T, *p.S)
	}
	return fmt.Sprintf("op %d %s", p.Op, p.D)
}

// client is a plain WebSocket client that knows none of Discord's rules.
type client struct {
	t      *testing.T
	srv    *discordtest.Server
	token  string
	ctx    context.Context
	ws     *websocket.Conn
	decode func(websocket.MessageType, []byte) ([]byte, error)
}

const plainQuery = "/?v=10&encoding=json"

// errMore is the error of a decoder that has read only a part of a payload.
var errMore = errors.New("more to come")

func decodePlain(typ websocket.MessageType, message []byte) ([]byte, error) {
	if typ != websocket.MessageText {
		return nil, fmt.Errorf("a message of type %v, not text", typ)
	}
	return message, nil
}

// dial opens a WebSocket.
func dial(t *testing.T, srv *discordtest.Server, url string) *client {
	t.Helper()
	ctx := within(t)
	ws, res, err := websocket.Dial(ctx, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.Body != nil {
		_ = res.Body.Close()
	}
	ws.SetReadLimit(-1)
	t.Cleanup(func() { _ = ws.CloseNow() })
	return &client{t, srv, srv.Token(), ctx, ws, decodePlain}
}

// read reads one payload, or the error that ends the connection.
func (c *client) read() (payload, []byte, error) {
	for {
		typ, message, err := c.ws.Read(c.ctx)
		if err != nil {
			return payload{}, nil, err
		}
		text, err := c.decode(typ, message)
		if errors.Is(err, errMore) {
			continue
		}
		if err != nil {
			return payload{}, nil, err
		}
		var p payload
		err = json.Unmarshal(text, &p)
		return p, text, err
	}
}

// next reads one payload.
func (c *client) next() payload {
	c.t.Helper()
	p, text, err := c.read()
	if err != nil {
		c.t.Fatalf("read %q: %v", text, err)
	}
	return p
}

// expect reads payloads and compares them by String.
func (c *client) expect(want ...string) {
	c.t.Helper()
	for _, w := range want {
		if got := c.next().String(); got != w {
			c.t.Fatalf("got %s, want %s", got, w)
		}
	}
}

// expectClose reads the end of the connection and compares its code, which is
// 1006 without a close frame.
func (c *client) expectClose(want int) {
	c.t.Helper()
	p, _, err := c.read()
	if err == nil {
		c.t.Fatalf("got %s, want the end with %d", p, want)
	}
	if got := closeCode(c.t, err); got != want {
		c.t.Fatalf("the connection ended with %d, want %d: %v", got, want, err)
	}
}

func closeCode(t *testing.T, err error) int {
	t.Helper()
	if errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the connection did not end: %v", err)
	}
	if code := websocket.CloseStatus(err); code != -1 {
		return int(code)
	}
	return 1006
}

func (c *client) send(format string, args ...any) {
	c.t.Helper()
	if err := c.ws.Write(c.ctx, websocket.MessageText, fmt.Appendf(nil, format, args...)); err != nil {
		c.t.Fatal(err)
	}
}

// hello dials and reads HELLO.
func hello(t *testing.T, srv *discordtest.Server, base string) *client {
	t.Helper()
	c := dial(t, srv, base+plainQuery)
	if p := c.next(); p.Op != 10 {
		t.Fatalf("got %s, want HELLO", p)
	}
	return c
}

func (c *client) identify(shard, count int) {
	c.t.Helper()
	c.send(`{"op":2,"d":{"token":%q,"properties":{"os":"linux","browser":"x","device":"x"},"shard":[%d,%d],"intents":513}}`,
		c.token, shard, count)
}

func (c *client) resume(session string, seq int64) {
	c.t.Helper()
	c.send(`{"op":6,"d":{"token":%q,"session_id":%q,"seq":%d}}`, c.token, session, seq)
}

// ready dials, identifies and reads READY. It returns the session's id.
func ready(t *testing.T, srv *discordtest.Server, shard, count int) (*client, string) {
	t.Helper()
	c := hello(t, srv, srv.GatewayURL())
	c.identify(shard, count)
	return c, c.ready()
}

func (c *client) ready() string {
	c.t.Helper()
	p := c.next()
	if p.String() != "READY 1" {
		c.t.Fatalf("got %s, want READY 1", p)
	}
	var d struct {
		Session string `json:"session_id"`
	}
	if err := json.Unmarshal(p.D, &d); err != nil || d.Session == "" {
		c.t.Fatalf("READY without a session: %v: %s", err, p.D)
	}
	return d.Session
}

// resumed dials the resume URL and resumes.
func resumed(t *testing.T, srv *discordtest.Server, session string, seq int64) *client {
	t.Helper()
	c := hello(t, srv, srv.ResumeURL())
	c.resume(session, seq)
	return c
}

func dispatch(t *testing.T, srv *discordtest.Server, shard int, name, data string) discordtest.Sent {
	t.Helper()
	sent, err := srv.Dispatch(shard, name, []byte(data))
	if err != nil {
		t.Fatal(err)
	}
	return sent
}

func do(t *testing.T, srv *discordtest.Server, shard int, actions ...discordtest.Action) {
	t.Helper()
	if err := srv.Do(shard, actions...); err != nil {
		t.Fatal(err)
	}
}

// wantIllegal checks the broken rules, each by the beginning of its reason.
func wantIllegal(t *testing.T, srv *discordtest.Server, want ...string) {
	t.Helper()
	got := srv.Illegal()
	same := len(got) == len(want)
	for i := range min(len(got), len(want)) {
		same = same && len(got[i].Detail) >= len(want[i]) && got[i].Detail[:len(want[i])] == want[i]
	}
	if !same {
		t.Errorf("illegal: %v\nwant: %q", got, want)
	}
}

// answer is the answer to a REST call.
type answer struct {
	status int
	header http.Header
	body   map[string]any
}

func get(t *testing.T, url, authorization string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(within(t), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	res, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	a := answer{status: res.StatusCode, header: res.Header}
	if err := json.NewDecoder(res.Body).Decode(&a.body); err != nil {
		t.Fatalf("%s: %v", res.Status, err)
	}
	return a
}
