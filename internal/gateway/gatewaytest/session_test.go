package gatewaytest_test

import (
	"testing"

	"github.com/coder/websocket"

	"github.com/gatehook/gatehook/internal/gateway/gatewaytest"
)

func TestDispatchDropResume(t *testing.T) {
	t.Parallel()
	srv := start(t, gatewaytest.Config{})
	c, session := ready(t, srv, 0, 1)
	sent := dispatch(t, srv, 0, "MESSAGE_CREATE", `{"id" : "1"}`)
	if want := (gatewaytest.Sent{Session: session, Seq: 2}); sent != want {
		t.Fatalf("sent %v, want %v", sent, want)
	}
	p, text, err := c.read()
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"t":"MESSAGE_CREATE","s":2,"op":0,"d":{"id" : "1"}}`; string(text) != want {
		t.Fatalf("%v: got %s, want %s", p, text, want)
	}
	do(t, srv, 0, gatewaytest.Drop())
	dispatch(t, srv, 0, "MESSAGE_UPDATE", `{}`)
	dispatch(t, srv, 0, "MESSAGE_DELETE", `{}`)
	c.expectClose(1006)

	c = resumed(t, srv, session, 2)
	c.expect("MESSAGE_UPDATE 3", "MESSAGE_DELETE 4", "RESUMED 5")
	dispatch(t, srv, 0, "TYPING_START", `{}`)
	c.expect("TYPING_START 6")
	_ = c.ws.Close(websocket.StatusNormalClosure, "")
	wantIllegal(t, srv)
}
