package gateway

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// TestSendLimits: of the sends that Discord takes, commands leave some to
// heartbeats; and what is too large never leaves.
func TestSendLimits(t *testing.T) {
	t.Parallel()
	r := newRig(t, discordtest.Config{})
	c, err := newDialer("test", NoCompression, newMetrics(prometheus.NewRegistry())).dial(r.ctx, r.GatewayURL())
	if err != nil {
		t.Fatal(err)
	}
	defer c.close(codeKeep, "")
	if err := c.send(r.ctx, opIdentify, identifyCommand{Token: r.Token(), Properties: identifyProperties{OS: "test"}, Shard: [2]int{0, 1}}); err != nil {
		t.Fatal(err)
	}
	r.ready(0)
	var tooLarge *sizeError
	if err := c.command(r.ctx, 31, strings.Repeat("x", maxSend)); !errors.As(err, &tooLarge) || tooLarge.size <= maxSend {
		t.Errorf("a payload of more than %d bytes: %v", maxSend, err)
	}
	sent := 0
	for err = nil; err == nil && sent <= sendLimit; sent++ {
		err = c.command(r.ctx, 31, struct{}{})
	}
	var limit *limitError
	if !errors.As(err, &limit) || limit.wait <= 0 || limit.wait > sendWindow {
		t.Errorf("the end of the sends is %v", err)
	}
	if want := sendLimit - sendRoom - 1; sent-1 != want { // IDENTIFY was one
		t.Errorf("%d commands were sent, want %d", sent-1, want)
	}
	for range sendRoom {
		if err := c.send(r.ctx, opHeartbeat, nil); err != nil {
			t.Errorf("a heartbeat: %v", err)
		}
	}
	if left := c.sent.wait(time.Now(), 0); left == 0 {
		t.Error("heartbeats are not counted")
	}
	r.count(discordtest.Heartbeat, 0, sendRoom)
	r.legal()
}
