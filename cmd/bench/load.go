package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// eventName is an event with one text of any length, whose model adds no fields to
// those that Discord sends. So bodies have the requested size, from 300 bytes on.
const eventName = "VOICE_CHANNEL_STATUS_UPDATE"

// envelope is the approximate size of a body without its status.
const envelope = 240

// settleTimeout is how long the last deliveries may take.
const settleTimeout = 60 * time.Second

// load sends the simulated Discord's events.
type load struct {
	discord *discordtest.Server
	sink    *receiver
	setup   setup
	text    string // pads the status to the requested size
	sent    int    // events so far
}

func newLoad(d *discordtest.Server, r *receiver, s setup) *load {
	return &load{discord: d, sink: r, setup: s, text: prose(max(0, s.Body-envelope-len(stamp(nil, 1, time.Now()))))}
}

// prose returns a text that compresses about as well as people's messages.
func prose(size int) string {
	words := strings.Fields("the raid begins at nine and whoever comes late has to bring snacks for everybody " +
		"our server moved to another region last night please report lag in this channel only thank you " +
		"who wants to play a round of chess before dinner my brother found an old guitar under the stairs")
	var b strings.Builder
	for n := uint32(1); b.Len() < size; n = n*1664525 + 1013904223 { // the same text in every run
		b.WriteString(words[int(n>>16)%len(words)])
		b.WriteString(strconv.Itoa(int(n >> 28)))
		b.WriteByte(' ')
	}
	return b.String()[:size]
}

// stamp appends the beginning of a status: the event's number, and the time at
// which its frame was sent, in Unix nanoseconds.
func stamp(b []byte, event int, at time.Time) []byte {
	b = strconv.AppendInt(b, int64(event), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, at.UnixNano(), 10)
	return append(b, ' ')
}

var statusKey = []byte(`"status":"`)

// readStamp finds the stamp in a body.
func readStamp(body []byte) (event int, at time.Time, err error) {
	_, stamped, ok := bytes.Cut(body, statusKey)
	number, rest, _ := bytes.Cut(stamped, []byte(" "))
	nanos, _, _ := bytes.Cut(rest, []byte(" "))
	event, err = strconv.Atoi(string(number))
	n, nanosErr := strconv.ParseInt(string(nanos), 10, 64)
	if !ok || errors.Join(err, nanosErr) != nil {
		return 0, at, fmt.Errorf("a body that is not of this benchmark: %.200q", body)
	}
	return event, time.Unix(0, n), nil
}

// send dispatches the next event, to the shards in turn.
func (l *load) send() error {
	d := make([]byte, 0, envelope+len(l.text))
	d = append(d, `{"id":"1187654321098765450","guild_id":"1187654321098765432","status":"`...)
	d = stamp(d, l.sent, time.Now())
	d = append(d, l.text...)
	d = append(d, `"}`...)
	if _, err := l.discord.Dispatch(l.sent%l.setup.Shards, eventName, d); err != nil {
		return fmt.Errorf("send an event: %w", err)
	}
	l.sent++
	return nil
}

// flood sends events for a duration, as fast as they are delivered: at most
// window of them are under way. It returns when all are delivered.
func (l *load) flood(ctx context.Context, d time.Duration, window int) error {
	end := time.Now().Add(d)
	timeout := time.NewTimer(d + settleTimeout)
	defer timeout.Stop()
	fanout := int64(l.setup.Fanout)
	for time.Now().Before(end) {
		under := int64(l.sent) - l.sink.delivered.Load()/fanout
		if under < int64(window) {
			if err := l.send(); err != nil {
				return err
			}
			continue
		}
		// Wait for a quarter of the window: Discord's frames come in bursts too,
		// and waking for each delivery would distort the measurement.
		if err := l.sink.await(int64(l.sent-window+(window+3)/4)*fanout, timeout.C, ctx.Done()); err != nil {
			return err
		}
	}
	return l.settle(ctx)
}

// pace sends events at a rate (per second) for a duration, and returns when all
// are delivered.
func (l *load) pace(ctx context.Context, d time.Duration, rate int) error {
	began := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := 0; ; i++ {
		at := began.Add(time.Duration(i) * time.Second / time.Duration(rate))
		if at.Sub(began) >= d {
			return l.settle(ctx)
		}
		timer.Reset(time.Until(at))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := l.send(); err != nil {
			return err
		}
	}
}

// settle waits for the last deliveries. It returns an error if one is missing or
// the receiver noticed a problem.
func (l *load) settle(ctx context.Context) error {
	timeout := time.NewTimer(settleTimeout)
	defer timeout.Stop()
	err := l.sink.await(int64(l.sent)*int64(l.setup.Fanout), timeout.C, ctx.Done())
	for n, b := range *l.sink.inboxes.Load() {
		if missing := b.missing(l.sent); missing > 0 {
			err = errors.Join(err, fmt.Errorf("listener %d did not receive %d of %d events", n, missing, l.sent))
		}
	}
	return errors.Join(err, l.sink.joined())
}
