package callback

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// pingTimeout bounds the answer to a PING. Discord, too, allows 3 s.
const pingTimeout = 3 * time.Second

// Ping checks that a callback in the format discord verifies signatures, as Discord
// does before it accepts a webhook events URL (Discord: Preparing for Events). The
// callback must accept a signed PING and refuse a badly signed one. The PING names the
// bot's application. The error is meant for people.
func (c *Client) Ping(ctx context.Context, l *event.Listener, application event.Snowflake) error {
	t, err := NewTarget(l)
	if err != nil {
		return err
	}
	key := c.key()
	body := fmt.Appendf(nil, `{"version":1,"application_id":"%v","type":0}`, application)
	timestamp := strconv.FormatInt(time.Now().Unix(), 10)
	r := c.ping(ctx, t, timestamp, key.sign(timestamp, body), body)
	switch {
	case r.Err != nil:
		return fmt.Errorf("it did not answer a signed PING: %w", r.Err)
	case r.Class != Class2xx:
		return fmt.Errorf("it answered %d instead of 204 to a signed PING: it has to verify with the public key %s (GET /signing-keys); "+
			"\"verify\": false registers it without a PING", r.Status, key.Public())
	}
	// The signature is a real one, but of another body.
	r = c.ping(ctx, t, timestamp, key.sign(timestamp, body[1:]), body)
	switch {
	case r.Err != nil:
		return fmt.Errorf("it did not answer a badly signed PING: %w", r.Err)
	case r.Class == Class2xx:
		return errors.New("it answered " + strconv.Itoa(r.Status) + " instead of 401 to a badly signed PING: it has to verify X-Signature-Ed25519; " +
			"\"verify\": false registers it without a PING")
	}
	return nil
}

// ping sends one PING.
func (c *Client) ping(ctx context.Context, t *Target, timestamp, signature string, body []byte) Result {
	deadline := time.Now().Add(min(c.timeout, pingTimeout))
	return c.do(ctx, t, deadline, body, func(head []byte) []byte { return appendDiscord(head, signature, timestamp) })
}
