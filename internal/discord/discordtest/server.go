package discordtest

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// sessionLimit is how many sessions are remembered; beyond it, the oldest that
// are gone are forgotten.
const sessionLimit = 4096

// Server is a simulated Discord. Start makes one and Close ends it. All
// methods may be called concurrently.
type Server struct {
	cfg Config
	// gateway serves the REST calls and the gateway's URL, resume the resume
	// URL only: another port, so that a client that takes one for the other
	// is found out.
	gateway, resume net.Listener
	servers         []*http.Server
	done            chan struct{}  // closed by Close
	wg              sync.WaitGroup // servers, handlers and writers

	mu       sync.Mutex // guards what follows, all sessions and all connections
	room     *sync.Cond // on mu: a session has room again
	blocked  int        // how many wait for room
	closed   bool
	token    string
	limit    SessionStart
	resetAt  time.Time
	buckets  map[int]time.Time    // when the bucket was last taken
	asked    map[string]time.Time // when all members of a guild were last asked for
	lastConn int
	conns    map[*conn]struct{}
	sessions map[string]*session
	order    []*session         // as they began
	byShard  map[int][]*session // that are not gone, as they began
	stopped  map[string]bool    // the clients that are suspended
	faults   []*armed
	log      journal
	calls    int64
	records  []Record
}

// Start starts a simulated Discord, on two ports of the loopback unless
// Config.Listen says otherwise. The caller must Close it.
func Start(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("discordtest: start: %w", err)
	}
	s := &Server{
		cfg:      cfg,
		done:     make(chan struct{}),
		token:    cfg.Token,
		limit:    cfg.SessionStart,
		resetAt:  time.Now().Add(cfg.SessionStart.ResetAfter),
		buckets:  map[int]time.Time{},
		asked:    map[string]time.Time{},
		conns:    map[*conn]struct{}{},
		sessions: map[string]*session{},
		byShard:  map[int][]*session{},
		stopped:  map[string]bool{},
		log:      journal{counts: map[counted]int{}, changed: make(chan struct{})},
	}
	s.room = sync.NewCond(&s.mu)
	var err error
	if s.gateway, err = cfg.Listen(); err != nil {
		return nil, fmt.Errorf("discordtest: start: %w", err)
	}
	if s.resume, err = cfg.Listen(); err != nil {
		return nil, fmt.Errorf("discordtest: start: %w", errors.Join(err, s.gateway.Close()))
	}
	s.serve(s.gateway, s.handleAPI)
	s.serve(s.resume, func(w http.ResponseWriter, r *http.Request) { s.handleGateway(w, r, true) })
	return s, nil
}

func (s *Server) serve(l net.Listener, h http.HandlerFunc) {
	srv := &http.Server{Handler: s.owned(h), ReadHeaderTimeout: 10 * time.Second}
	s.servers = append(s.servers, srv)
	s.wg.Go(func() {
		_ = srv.Serve(l) // ends by Close, with an error that says just that
	})
}

// owned makes Close wait for the handler: http.Server forgets a connection
// that was hijacked.
func (s *Server) owned(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			panic(http.ErrAbortHandler) // closes the connection without an answer
		}
		s.wg.Add(1)
		s.mu.Unlock()
		defer s.wg.Done()
		h(w, r)
	}
}

// Close drops all connections and returns when nothing of the server runs any
// more. Waits and dispatches under way return ErrClosed.
func (s *Server) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		s.wg.Wait()
		return
	}
	s.closed = true
	close(s.done)
	for c := range s.conns {
		_ = c.wire.Close() // whatever state it is in: its reader books the end
	}
	s.signal()
	s.mu.Unlock()
	for _, srv := range s.servers {
		_ = srv.Close() // as above
	}
	s.wg.Wait()
}

// APIURL is the base of the REST API, as https://discord.com/api/v10 is.
func (s *Server) APIURL() string { return "http://" + s.gateway.Addr().String() + "/api/v10" }

// GatewayURL is what /gateway/bot answers.
func (s *Server) GatewayURL() string { return "ws://" + s.gateway.Addr().String() }

// ResumeURL is the resume_gateway_url in READY.
func (s *Server) ResumeURL() string { return "ws://" + s.resume.Addr().String() }

// Token is the bot token that is accepted, without "Bot ".
func (s *Server) Token() string { return s.cfg.Token }

// SetShards changes what /gateway/bot recommends.
func (s *Server) SetShards(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg.Shards = n
}

// SetFlags changes the application's flags; 0 means none.
func (s *Server) SetFlags(flags int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg.Flags = flags
}

// SetSessionStart changes the session start limit.
func (s *Server) SetSessionStart(l SessionStart) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = l.withDefaults()
	s.resetAt = time.Now().Add(s.limit.ResetAfter)
}

// sessionStart returns the limit as it is by now. s.mu is held.
func (s *Server) sessionStart() SessionStart {
	if now := time.Now(); !now.Before(s.resetAt) {
		s.limit.Remaining = s.limit.Total
		s.resetAt = now.Add(day)
	}
	l := s.limit
	l.ResetAfter = time.Until(s.resetAt)
	return l
}

// newest returns the newest session of the shard that is not gone, or nil.
// s.mu is held.
func (s *Server) newest(shard int) *session {
	s.expire(s.byShard[shard]...)
	if sessions := s.byShard[shard]; len(sessions) > 0 {
		return sessions[len(sessions)-1]
	}
	return nil
}

// begin starts a session on a connection, with READY as its first dispatch.
// s.mu is held.
func (s *Server) begin(c *conn, ss *session) {
	ss.id = newSessionID()
	ss.frames = newRing(s.cfg.ReplayLimit)
	s.forget()
	s.sessions[ss.id] = ss
	s.order = append(s.order, ss)
	s.byShard[ss.shard] = append(s.byShard[ss.shard], ss)
	c.attach(ss)
	s.push(ss, "READY", frame{name: "READY", data: s.readyData(ss)}, 0)
	s.note(Entry{Kind: Ready, Conn: c.id, Shard: ss.shard, Session: ss.id})
}

func (s *Server) forget() {
	if len(s.order) < sessionLimit {
		return
	}
	s.order = slices.DeleteFunc(s.order, func(ss *session) bool {
		if ss.dead != "" {
			delete(s.sessions, ss.id)
		}
		return ss.dead != ""
	})
}

// kill ends a session: nobody can resume it any more. s.mu is held.
func (s *Server) kill(ss *session, why string, byClient bool) {
	if ss.dead != "" {
		return
	}
	ss.dead, ss.byClient = why, byClient
	ss.frames = ring{limit: 1, first: ss.seq + 1}
	// A new slice: somebody may be walking over the old one.
	s.byShard[ss.shard] = slices.DeleteFunc(slices.Clone(s.byShard[ss.shard]), func(other *session) bool { return other == ss })
	if c := ss.conn; c != nil {
		c.detach()
	}
	s.room.Broadcast()
	s.signal()
}
