package gateway

import (
	"context"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/gatewaytest"
	"github.com/gatehook/gatehook/internal/secret"
)

// discard is a Store that counts and keeps nothing.
type discard struct {
	n     int
	total int
	done  chan struct{}
	last  event.Session
}

func (d *discard) Claim(context.Context, event.Snowflake, event.Shard) (Claim, error) {
	return d, nil
}

func (d *discard) Session() event.Session        { return event.Session{} }
func (d *discard) Stored() int64                 { return 0 }
func (d *discard) Lost() <-chan struct{}         { return nil }
func (d *discard) Release(context.Context) error { return nil }

func (d *discard) Append(_ context.Context, s event.Session, e *event.Event) error {
	d.last = s
	if e != nil && e.Name == "MESSAGE_CREATE" {
		if d.n++; d.n == d.total {
			close(d.done)
		}
	}
	return nil
}

// BenchmarkEvents takes dispatches of a usual size from the simulated Discord,
// over a real WebSocket, to the journal's door. The simulated Discord's own
// work is in the time.
func BenchmarkEvents(b *testing.B) {
	for _, c := range []Compression{ZstdStream, ZlibStream, NoCompression} {
		b.Run(string(c), func(b *testing.B) {
			srv, err := gatewaytest.Start(gatewaytest.Config{})
			if err != nil {
				b.Fatal(err)
			}
			defer srv.Close()
			store := &discard{total: b.N, done: make(chan struct{})}
			g := New(Config{
				Token: secret.New(srv.Token()), APIURL: srv.APIURL(), Compression: c,
				Intents: func() event.Intents { return event.IntentGuildMessages },
			}, store, atOnce, quiet, prometheus.NewRegistry())
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error)
			go func() { done <- g.Run(ctx) }()
			if _, err := srv.WaitReady(ctx, 0); err != nil {
				b.Fatal(err)
			}
			f, err := gatewaytest.ParseFrame(messageCreate)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(messageCreate)))
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if _, err := srv.DispatchFrame(0, f); err != nil {
					b.Fatal(err)
				}
			}
			<-store.done
			b.StopTimer()
			cancel()
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}
