package gateway

import "github.com/gatehook/gatehook/internal/event"

// find returns the shard of that name if this process runs it or may come to
// run it, else nil.
func (g *Gateway) find(id event.Shard) *shard {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shards[id]
}

// extent tells whose shards these are and how many there are in the set that
// commands go to; each is 0 until it is known.
func (g *Gateway) extent() (applicationID event.Snowflake, count int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	count = g.plan.Current
	if g.plan.Phase == event.Overlapping || g.plan.Phase == event.Switching {
		// What answers a command is dispatched to one session only. The old
		// set has the whole overlap for what it was asked before; the next one
		// keeps its answers until it delivers.
		count = g.plan.Next
	}
	return event.Snowflake(g.application.Load()), count
}

// owned are the shards that this process has, of all sets.
func (g *Gateway) owned() (list []*shard) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.shards {
		if s.held() != nil {
			list = append(list, s)
		}
	}
	return list
}

// service returns the connection that commands go through, or nil while there
// is none.
func (s *shard) service() *running {
	r := s.current.Load()
	if r == nil || !r.isLive() || r.ended() {
		return nil
	}
	return r
}
