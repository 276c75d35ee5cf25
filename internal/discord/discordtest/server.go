package discordtest

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// Server is a simulated Discord. Start makes one and Close ends it. All
// methods may be called concurrently.
type Server struct {
	cfg Config // mu guards Shards and Flags; the rest never changes
	// gateway serves the REST calls and the gateway's URL; resume serves the
	// resume URL only. The ports differ so that a client that confuses the
	// two URLs is noticed.
	gateway, resume net.Listener
	servers         []*http.Server
	done            chan struct{}  // closed by Close
	wg              sync.WaitGroup // servers and handlers; a handler waits for its connection's writer

	mu           sync.Mutex // guards the fields below, all sessions and all connections
	room         *sync.Cond // on mu: a session has room again
	blocked      int        // calls that wait for room
	closed       bool
	token        string
	starts       SessionStart
	resetAt      time.Time            // when starts is reset
	buckets      map[int]time.Time    // when each bucket was last taken
	membersAsked map[string]time.Time // when all members of each guild were last requested
	resumeDown   time.Time            // when the resume URL last failed to answer at once; zero for never
	lastConn     int
	conns        map[*conn]struct{}
	sessions     map[string]*session
	order        []*session         // all sessions, oldest first
	byShard      map[int][]*session // live sessions, oldest first
	suspended    map[string]bool    // the suspended clients
	faults       []*fault
	log          entryLog
	calls        int64 // dispatch calls so far
	records      []Record
}

// Start starts a simulated Discord, on two loopback ports unless Config.Listen
// says otherwise. The caller must Close it.
func Start(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("discordtest: start: %w", err)
	}
	s := &Server{
		cfg:          cfg,
		done:         make(chan struct{}),
		token:        cfg.Token,
		starts:       cfg.SessionStart,
		resetAt:      time.Now().Add(cfg.SessionStart.ResetAfter),
		buckets:      map[int]time.Time{},
		membersAsked: map[string]time.Time{},
		conns:        map[*conn]struct{}{},
		sessions:     map[string]*session{},
		byShard:      map[int][]*session{},
		suspended:    map[string]bool{},
		log:          entryLog{counts: map[countKey]int{}, changed: make(chan struct{})},
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
	srv := &http.Server{Handler: s.tracked(h), ReadHeaderTimeout: 10 * time.Second}
	s.servers = append(s.servers, srv)
	s.wg.Go(func() {
		_ = srv.Serve(l) // returns http.ErrServerClosed after Close
	})
}

// tracked makes Close wait for the handler, because http.Server does not wait
// for hijacked connections.
func (s *Server) tracked(h http.HandlerFunc) http.HandlerFunc {
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

// Close drops all connections and returns once all goroutines of the server
// have ended. Pending waits and dispatches return ErrClosed.
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
		_ = c.wire.Close() // in any state: its reader records the end
	}
	s.signalLocked()
	s.mu.Unlock()
	for _, srv := range s.servers {
		_ = srv.Close() // fails only if a listener is closed already
	}
	s.wg.Wait()
}

// APIURL is the base URL of the REST API, in place of https://discord.com/api/v10.
func (s *Server) APIURL() string { return "http://" + s.gateway.Addr().String() + "/api/v10" }

// GatewayURL is the URL in the answer of /gateway/bot.
func (s *Server) GatewayURL() string { return "ws://" + s.gateway.Addr().String() }

// ResumeURL is the resume_gateway_url in READY.
func (s *Server) ResumeURL() string { return "ws://" + s.resume.Addr().String() }

// Token is the accepted bot token, without "Bot ".
func (s *Server) Token() string { return s.cfg.Token }

// SetShards changes the number of shards that /gateway/bot recommends.
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
