package discordtest_test

import (
	"context"
	"fmt"
	"time"

	"github.com/coder/websocket"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// A client becomes ready, receives an event, loses its connection, and resumes
// to receive the event that it missed.
func Example() {
	srv, err := discordtest.Start(discordtest.Config{Token: "secret"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer srv.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	// The client. Any client works that connects to srv.APIURL() with srv.Token().
	connect := func(url, first string) *websocket.Conn {
		ws, _, err := websocket.Dial(ctx, url+"/?v=10&encoding=json", nil) //nolint:bodyclose // Dial takes it over
		if err != nil {
			fmt.Println(err)
			return nil
		}
		if err := ws.Write(ctx, websocket.MessageText, []byte(first)); err != nil {
			fmt.Println(err)
		}
		_, _, _ = ws.Read(ctx) // HELLO
		return ws
	}
	read := func(ws *websocket.Conn) {
		_, message, err := ws.Read(ctx)
		if err != nil {
			fmt.Println("disconnected:", websocket.CloseStatus(err))
			return
		}
		fmt.Printf("%s\n", message)
	}
	ws := connect(srv.GatewayURL(), `{"op":2,"d":{"token":"secret","properties":{"os":"linux"},"shard":[0,1],"intents":512}}`)

	// The script.
	session, err := srv.WaitReady(ctx, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	_, _, _ = ws.Read(ctx) // READY, with the session's id
	_, _ = srv.Dispatch(0, "MESSAGE_CREATE", []byte(`{"id":"1"}`))
	_ = srv.Do(0, discordtest.Drop())
	_, _ = srv.Dispatch(0, "MESSAGE_DELETE", []byte(`{"id":"1"}`))
	read(ws)
	read(ws)

	ws = connect(srv.ResumeURL(), fmt.Sprintf(`{"op":6,"d":{"token":"secret","session_id":%q,"seq":2}}`, session.ID))
	resume, err := srv.WaitResume(ctx, 0, 1)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("RESUME from", resume.Seq)
	read(ws)
	read(ws)
	_ = ws.Close(4900, "")
	fmt.Println("illegal:", srv.Illegal())

	// Output:
	// {"t":"MESSAGE_CREATE","s":2,"op":0,"d":{"id":"1"}}
	// disconnected: StatusCode(-1)
	// RESUME from 2
	// {"t":"MESSAGE_DELETE","s":3,"op":0,"d":{"id":"1"}}
	// {"t":"RESUMED","s":4,"op":0,"d":{"_trace":["discordtest"]}}
	// illegal: []
}
