package gateway

import (
	"context"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/identify/identifytest"
	"github.com/gatehook/gatehook/internal/secret"
)

// discard is the Claim on a Store's only shard. It counts the events and stores
// nothing.
type discard struct {
	*memoryClaim
	n     int
	total int
	done  chan struct{}
	last  event.Session
}

func (d *discard) Stored() int64 { return 0 }

func (d *discard) Append(_ context.Context, s event.Session, e *event.Event) error {
	d.last = s
	if e != nil && e.Name == "MESSAGE_CREATE" {
		if d.n++; d.n == d.total {
			close(d.done)
		}
	}
	return nil
}

// discarding is a Store whose claims discard.
type discarding struct {
	*peer
	*discard
}

func (d discarding) Claim(ctx context.Context, id event.Snowflake, shards []event.Shard) ([]Claim, error) {
	claims, err := d.peer.Claim(ctx, id, shards)
	for i := range claims {
		d.memoryClaim = claims[i].(*memoryClaim)
		claims[i] = d.discard
	}
	return claims, err
}

// BenchmarkEvents takes dispatches of a usual size from the simulated Discord,
// over a real WebSocket, to Claim.Append. The time includes the work of the
// simulated Discord.
func BenchmarkEvents(b *testing.B) {
	for _, c := range []discord.Compression{discord.ZstdStream, discord.ZlibStream, discord.NoCompression} {
		b.Run(string(c), func(b *testing.B) {
			srv, err := discordtest.Start(discordtest.Config{})
			if err != nil {
				b.Fatal(err)
			}
			defer srv.Close()
			store := &discard{total: b.N, done: make(chan struct{})}
			g := New(Config{
				Token: secret.New(srv.Token()), APIURL: srv.APIURL(), Compression: c,
				Intents: func() event.Intents { return event.IntentGuildMessages },
			}, discarding{newMemory().join(), store}, &identifytest.Slots{}, quiet, prometheus.NewRegistry())
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error)
			go func() { done <- g.Run(ctx) }()
			if _, err := srv.WaitReady(ctx, 0); err != nil {
				b.Fatal(err)
			}
			recorded := discordtest.MessageCreate()
			f, err := discordtest.ParseFrame(recorded)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(recorded)))
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
