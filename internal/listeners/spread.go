package listeners

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/postgres"
)

// Peers are the instances on one database, each of which matches events by its own table.
type Peers interface {
	// Self returns the number of this instance, which can change.
	Self() int64
	// Applied tells the others which version this instance's table has.
	Applied(ctx context.Context, self, version int64) error
	// Versions returns the versions that the other live instances have told; 0 for none.
	Versions(ctx context.Context) (map[int64]int64, error)
}

const (
	// maxSpread is how long the answer to a change waits for the other instances.
	maxSpread = time.Second
	// lookEvery is how often to look whether they have it.
	lookEvery = 25 * time.Millisecond
)

// spread makes changes known to the other instances before they are answered.
type spread struct {
	peers Peers
	log   *slog.Logger
	// versions are those of the others: all changes that wait share one look.
	versions *postgres.Shared[map[int64]int64]

	mu sync.Mutex // guards the fields below
	// late are instances that did not tell a version in time: they hang, or are of a
	// release that tells none. Nobody waits for them until they have told it.
	late map[int64]int64
	// toldAs and told are what this instance told last.
	toldAs, told int64
}

func newSpread(peers Peers, log *slog.Logger) *spread {
	return &spread{peers: peers, log: log, versions: postgres.NewShared(peers.Versions), late: make(map[int64]int64)}
}

// tell tells the others the version of this instance's table, unless they know it. It
// must be in use.
func (s *spread) tell(ctx context.Context, version int64) error {
	self := s.peers.Self()
	s.mu.Lock()
	known := s.toldAs == self && s.told >= version
	s.mu.Unlock()
	if known {
		return nil
	}
	if err := s.peers.Applied(ctx, self, version); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.toldAs != self || s.told < version {
		s.toldAs, s.told = self, version
	}
	return nil
}

// wait returns when all other live instances match events by a version, or a later one.
// It waits for maxSpread at most: the change is stored, and they read it when they can.
func (s *spread) wait(ctx context.Context, version int64) {
	ctx, cancel := context.WithTimeoutCause(ctx, maxSpread, errors.New("other servers did not learn of a change of listeners in time"))
	defer cancel()
	since := time.Now()
	var behind []int64
	for {
		versions, asked, err := s.versions.Answer(ctx, since)
		if err == nil {
			if behind = s.behind(versions, version); len(behind) == 0 {
				return
			}
			since = asked // next, whoever is the first to look does it for all
		}
		next := time.NewTimer(lookEvery)
		select {
		case <-next.C:
		case <-ctx.Done():
			next.Stop()
			if len(behind) > 0 && s.giveUp(behind, version) {
				s.log.LogAttrs(ctx, slog.LevelWarn, "other servers did not learn of a change of listeners within a second: until they do, their events are not for it",
					slog.Any("instances", behind))
			}
			return
		}
	}
}

// behind returns the instances to wait for, in order.
func (s *spread) behind(versions map[int64]int64, version int64) (behind []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.late, func(id, missed int64) bool {
		told, live := versions[id]
		return !live || told >= missed
	})
	for id, told := range versions {
		if _, late := s.late[id]; told < version && !late {
			behind = append(behind, id)
		}
	}
	slices.Sort(behind)
	return behind
}

// giveUp notes that instances were not in time, and reports whether that is news.
func (s *spread) giveUp(behind []int64, version int64) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range behind {
		if _, late := s.late[id]; !late {
			s.late[id], news = version, true
		}
	}
	return news
}
