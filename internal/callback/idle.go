package callback

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// idleTimeout is how long a connection is kept for the next POST.
	idleTimeout = 90 * time.Second
	// maxIdle is how many connections are kept in all. With TLS, each costs about 30
	// KB, and 10,000 listeners could have idle connections at once.
	maxIdle = 4096
)

// idlePool keeps the connections that wait for the next POST, by endpoint. Its zero value is
// ready for use, and it is safe for concurrent use.
type idlePool struct {
	mu     sync.Mutex // guards the fields below
	conns  map[string][]*conn
	n      int         // the number of conns
	sweep  *time.Timer // runs clean while there are conns
	closed bool
}

// take returns the most recently used connection, with the deadline set; nil if there
// is none.
func (p *idlePool) take(endpoint string, deadline time.Time) *conn {
	for {
		c := p.pop(endpoint)
		if c == nil {
			return nil
		}
		if time.Now().Before(c.until) && !c.spent() && c.expire(deadline) == nil {
			return c
		}
		_ = c.Close()
	}
}

// drop closes an endpoint's connections.
func (p *idlePool) drop(endpoint string) {
	for c := p.pop(endpoint); c != nil; c = p.pop(endpoint) {
		_ = c.Close()
	}
}

func (p *idlePool) pop(endpoint string) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	conns := p.conns[endpoint]
	if len(conns) == 0 {
		return nil
	}
	c := conns[len(conns)-1]
	conns[len(conns)-1] = nil
	p.conns[endpoint] = conns[:len(conns)-1]
	p.n--
	return c
}

// put keeps a connection for a time, or closes it if it can't be kept.
func (p *idlePool) put(endpoint string, c *conn, d time.Duration) {
	c.until = time.Now().Add(d)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || d <= 0 {
		_ = c.Close()
		return
	}
	if p.n >= maxIdle {
		p.evictLocked()
	}
	if p.conns == nil {
		p.conns = make(map[string][]*conn)
	}
	p.conns[endpoint] = append(p.conns[endpoint], c)
	p.n++
	if p.sweep == nil {
		p.sweep = time.AfterFunc(idleTimeout/3, p.clean)
	}
}

// evictLocked closes one connection to make room: the longest idle one of an arbitrary
// endpoint.
func (p *idlePool) evictLocked() {
	for endpoint, conns := range p.conns {
		if len(conns) > 0 {
			_ = conns[0].Close()
			p.conns[endpoint] = slices.Delete(conns, 0, 1)
			p.n--
			return
		}
	}
}

// clean closes the connections that are too old.
func (p *idlePool) clean() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for endpoint, conns := range p.conns {
		conns = slices.DeleteFunc(conns, func(c *conn) bool {
			old := !now.Before(c.until)
			if old {
				_ = c.Close()
				p.n--
			}
			return old
		})
		if p.conns[endpoint] = conns; len(conns) == 0 {
			delete(p.conns, endpoint)
		}
	}
	if p.sweep = nil; len(p.conns) > 0 {
		p.sweep = time.AfterFunc(idleTimeout/3, p.clean)
	}
}

// len returns how many connections are kept.
func (p *idlePool) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

// close closes all connections. From then on, put closes every connection.
func (p *idlePool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.sweep != nil {
		p.sweep.Stop()
	}
	for _, conns := range p.conns {
		for _, c := range conns {
			_ = c.Close()
		}
	}
	p.conns, p.n = nil, 0
}

// keptFor returns how long to keep an idle connection: as long as the other side
// announces (Keep-Alive), less one second for the latency. Node.js, for example, closes
// it after 5 s, and a POST written at that moment would be lost.
func keptFor(h http.Header) time.Duration {
	for part := range strings.SplitSeq(h.Get("Keep-Alive"), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		if seconds, err := strconv.Atoi(value); err == nil && strings.EqualFold(name, "timeout") {
			return min(idleTimeout, time.Duration(min(seconds, 3600))*time.Second-time.Second)
		}
	}
	return idleTimeout
}
