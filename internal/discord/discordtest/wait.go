package discordtest

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// WaitReady waits until the newest session of the shard is in service (see
// Session.Connected) and returns it. Only the present counts, not the past:
// after Do(shard, Drop()) it waits for the client to come back.
func (s *Server) WaitReady(ctx context.Context, shard int) (Session, error) {
	var found Session
	err := s.await(ctx, fmt.Sprintf("shard %d in service", shard), func() bool {
		if ss := s.newestLocked(shard); ss != nil {
			found = ss.snapshot()
		}
		return found.Connected
	})
	return found, err
}

// WaitConnected waits until the n-th WebSocket is opened.
func (s *Server) WaitConnected(ctx context.Context, n int) (Entry, error) {
	return s.WaitCount(ctx, Connected, AnyShard, n)
}

// WaitIdentify waits until the shard has sent its n-th IDENTIFY and returns it.
func (s *Server) WaitIdentify(ctx context.Context, shard, n int) (Entry, error) {
	return s.WaitCount(ctx, Identify, shard, n)
}

// WaitResume waits until the shard has sent its n-th RESUME and returns it.
func (s *Server) WaitResume(ctx context.Context, shard, n int) (Entry, error) {
	return s.WaitCount(ctx, Resume, shard, n)
}

// WaitAcked waits until a heartbeat of the shard's newest session has
// acknowledged seq.
func (s *Server) WaitAcked(ctx context.Context, shard int, seq int64) error {
	return s.await(ctx, fmt.Sprintf("shard %d acknowledging %d", shard, seq), func() bool {
		ss := s.newestLocked(shard)
		return ss != nil && ss.acked >= seq
	})
}

// WaitCount waits for the n-th entry of a kind for a shard, or for AnyShard,
// counted from Start, and returns it. The entry is empty if the log has already
// forgotten it.
func (s *Server) WaitCount(ctx context.Context, k Kind, shard, n int) (Entry, error) {
	var found Entry
	err := s.await(ctx, fmt.Sprintf("%s number %d of shard %d", k, n, shard), func() bool {
		total := s.countLocked(k, shard)
		if total < n {
			return false
		}
		for _, e := range slices.Backward(s.log.entries) {
			if e.Kind != k || shard != AnyShard && e.Shard != shard {
				continue
			}
			if total == n {
				found = e
				return true
			}
			total--
		}
		return true
	})
	return found, err
}

// await waits until cond returns true. It calls cond with s.mu held. goal names
// the condition in the error.
func (s *Server) await(ctx context.Context, goal string, cond func() bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !cond() {
		if s.closed {
			return ErrClosed
		}
		s.log.waiting = true
		changed := s.log.changed
		s.mu.Unlock()
		select {
		case <-changed:
			s.mu.Lock()
		case <-ctx.Done():
			s.mu.Lock()
			return fmt.Errorf("discordtest: no %s: %w; last: %s", goal, context.Cause(ctx), s.tailLocked())
		}
	}
	return nil
}

// signalLocked wakes all calls of await.
func (s *Server) signalLocked() {
	if s.log.waiting {
		close(s.log.changed)
		s.log.changed = make(chan struct{})
		s.log.waiting = false
	}
}

// tailLocked describes the last entries, for an error message.
func (s *Server) tailLocked() string {
	last := s.log.entries[max(0, len(s.log.entries)-8):]
	if len(last) == 0 {
		return "nothing happened"
	}
	lines := make([]string, len(last))
	for i, e := range last {
		lines[i] = e.String()
	}
	return strings.Join(lines, "; ")
}
