package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gatehook/gatehook/internal/event"
)

// settleTimeout is how long the demo waits for the last deliveries.
const settleTimeout = 30 * time.Second

// books compares the events sent with the deliveries received.
type books struct {
	mu       sync.Mutex // guards the fields below
	expected map[int64]sentEvent
	got      map[string]received // by event name and sequence number
	twice    int
	changed  chan struct{} // closed and replaced at every delivery
}

type sentEvent struct {
	name string
	data []byte
}

func newBooks() *books {
	return &books{expected: map[int64]sentEvent{}, got: map[string]received{}, changed: make(chan struct{})}
}

func (b *books) sent(seq int64, name string, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expected[seq] = sentEvent{name, data}
}

func bookKey(name string, seq int64) string { return fmt.Sprintf("%s %d", name, seq) }

func (b *books) received(r received) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.seq == 0 {
		return // a shard event, which Discord does not send
	}
	k := bookKey(r.event, r.seq)
	if _, ok := b.got[k]; ok {
		b.twice++
	}
	b.got[k] = r
	close(b.changed)
	b.changed = make(chan struct{})
}

// missing returns the deliveries that have not arrived, and a channel that is
// closed when the next one does.
func (b *books) missing() (missing []string, changed <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for seq, e := range b.expected {
		for _, name := range []string{e.name, event.RawPrefix + e.name} {
			if _, ok := b.got[bookKey(name, seq)]; !ok {
				missing = append(missing, bookKey(name, seq))
			}
		}
	}
	return missing, b.changed
}

// await waits until nothing is missing.
func (b *books) await(ctx context.Context, timeout time.Duration) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		missing, changed := b.missing()
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return fmt.Errorf("%d deliveries did not arrive within %v, such as %s", len(missing), timeout, missing[0])
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// problems returns an error for every delivery that is missing or wrong. Raw
// payloads must be the bytes that were sent.
func (b *books) problems() (problems []error) {
	missing, _ := b.missing()
	for _, m := range missing {
		problems = append(problems, fmt.Errorf("%s was not delivered", m))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for seq, e := range b.expected {
		raw, parsed := b.got[bookKey(event.RawPrefix+e.name, seq)], b.got[bookKey(e.name, seq)]
		if raw.id != "" && !bytes.Equal(raw.data, e.data) {
			problems = append(problems, fmt.Errorf("%s differs from the bytes sent", bookKey(raw.event, seq)))
		}
		if parsed.id != "" && (!json.Valid(parsed.data) || !utf8.Valid(parsed.data)) { // many libraries refuse what is not UTF-8
			problems = append(problems, fmt.Errorf("%s is not JSON in UTF-8", bookKey(parsed.event, seq)))
		}
		if raw.eventID != parsed.eventID || raw.id == parsed.id && raw.id != "" {
			problems = append(problems, fmt.Errorf("event %d has the ids %s and %s, its deliveries %s and %s", seq, raw.eventID, parsed.eventID, raw.id, parsed.id))
		}
	}
	return problems
}

func (b *books) sums() (sent, verified, twice int) {
	missing, _ := b.missing()
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.expected), 2*len(b.expected) - len(missing), b.twice
}
