package discord

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// TestSendLimits: commands leave some of the sends that Discord takes to
// heartbeats, and a payload that is too large is not sent.
func TestSendLimits(t *testing.T) {
	t.Parallel()
	srv, err := discordtest.Start(discordtest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := NewDialer(Config{Compression: NoCompression}).Dial(ctx, srv.GatewayURL())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Release()
	defer c.Close(CodeKeepSession, "")
	if err := c.Send(ctx, OpIdentify, Identify{Token: srv.Token(), Properties: Properties{OS: "test"}, Shard: [2]int{0, 1}}); err != nil {
		t.Fatal(err)
	}
	if _, err := srv.WaitReady(ctx, 0); err != nil {
		t.Fatal(err)
	}
	var tooLarge *SizeError
	if err := c.Command(ctx, 31, strings.Repeat("x", MaxSend)); !errors.As(err, &tooLarge) || tooLarge.Size <= MaxSend {
		t.Errorf("a payload of more than %d bytes: %v, want a SizeError", MaxSend, err)
	}
	sent := 0
	for err = nil; err == nil && sent <= SendLimit; sent++ {
		err = c.Command(ctx, 31, struct{}{})
	}
	var limit *LimitError
	if !errors.As(err, &limit) || limit.Wait <= 0 || limit.Wait > SendWindow {
		t.Errorf("the error at the limit is %v, want a LimitError", err)
	}
	if want := SendLimit - SendRoom - 1; sent-1 != want { // IDENTIFY was one
		t.Errorf("%d commands were sent, want %d", sent-1, want)
	}
	for range SendRoom {
		if err := c.Send(ctx, OpHeartbeat, nil); err != nil {
			t.Errorf("a heartbeat: %v", err)
		}
	}
	if left := c.sent.Wait(time.Now(), 0); left == 0 {
		t.Error("heartbeats are not counted")
	}
	if _, err := srv.WaitCount(ctx, discordtest.Heartbeat, 0, SendRoom); err != nil {
		t.Fatal(err)
	}
	for _, e := range srv.Illegal() {
		t.Errorf("illegal: %v", e)
	}
}
