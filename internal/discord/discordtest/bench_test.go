package discordtest_test

import (
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// BenchmarkDispatch measures a dispatch of 1 KiB, from the call until a client
// has read and discarded it.
func BenchmarkDispatch(b *testing.B) {
	for _, mode := range []string{"", "&compress=zlib-stream", "&compress=zstd-stream"} {
		b.Run("json"+mode, func(b *testing.B) {
			srv, err := discordtest.Start(discordtest.Config{})
			if err != nil {
				b.Fatal(err)
			}
			defer srv.Close()
			ws, _, err := websocket.Dial(b.Context(), srv.GatewayURL()+plainQuery+mode, nil) //nolint:bodyclose // Dial takes it over
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = ws.CloseNow() }()
			ws.SetReadLimit(-1)
			identify := `{"op":2,"d":{"token":"` + srv.Token() + `",` + properties + `,"intents":512}}`
			if err := ws.Write(b.Context(), websocket.MessageText, []byte(identify)); err != nil {
				b.Fatal(err)
			}
			read := func() {
				if _, _, err := ws.Read(b.Context()); err != nil {
					b.Error(err)
				}
			}
			read() // HELLO
			read() // READY
			data := []byte(`{"content":"` + strings.Repeat("lorem ipsum ", 85) + `"}`)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			b.ResetTimer()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for range b.N {
					read()
				}
			}()
			for range b.N {
				if _, err := srv.Dispatch(0, "MESSAGE_CREATE", data); err != nil {
					b.Fatal(err)
				}
			}
			<-done
		})
	}
}

// BenchmarkDispatchAway measures Dispatch alone: the client is away.
func BenchmarkDispatchAway(b *testing.B) {
	srv, err := discordtest.Start(discordtest.Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer srv.Close()
	ws, _, err := websocket.Dial(b.Context(), srv.GatewayURL()+plainQuery, nil) //nolint:bodyclose // Dial takes it over
	if err != nil {
		b.Fatal(err)
	}
	identify := `{"op":2,"d":{"token":"` + srv.Token() + `",` + properties + `,"intents":512}}`
	if err := ws.Write(b.Context(), websocket.MessageText, []byte(identify)); err != nil {
		b.Fatal(err)
	}
	if _, err := srv.WaitReady(b.Context(), 0); err != nil {
		b.Fatal(err)
	}
	_ = ws.CloseNow()
	if _, err := srv.WaitCount(b.Context(), discordtest.ClientClosed, 0, 1); err != nil {
		b.Fatal(err)
	}
	data := []byte(`{"content":"` + strings.Repeat("lorem ipsum ", 85) + `"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := srv.Dispatch(0, "MESSAGE_CREATE", data); err != nil {
			b.Fatal(err)
		}
	}
}
