package discordtest

import (
	"crypto/rand"
	"encoding/hex"
	"strconv"
	"time"
)

// Session is what a script may know of a gateway session.
type Session struct {
	ID      string
	Shard   int
	Count   int
	Intents int64
	// Seq is the sequence number of the last dispatch, Acked the highest one
	// that a heartbeat acknowledged.
	Seq, Acked int64
	// Connected tells whether a client is connected and in service: READY or
	// RESUMED is on its way and nothing has been done to send it away.
	Connected bool
	// Client is who began or resumed it last (see Server.TokenOf).
	Client string
	// Ended is why nobody can resume it any more; empty while it can be
	// resumed, as far as anybody tried. ByClient: the client ended it, with
	// 1000 or 1001 or by what it must not do.
	Ended    string
	ByClient bool
}

// session is one gateway session. Server.mu guards it.
type session struct {
	id           string
	shard, count int
	intents      int64
	compress     bool // IDENTIFY asked for payload compression
	query        query
	seq, acked   int64
	frames       ring
	conn         *conn     // nil while away
	awaySince    time.Time // zero while connected
	client       string    // of the last connection
	dead         string    // why it can't be resumed; empty while it can
	byClient     bool      // it is dead by the client's doing
	told         []string  // the clients that know that it is dead
}

func newSessionID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(b[:])
}

// push appends a dispatch and wakes the connection's writer. What the client
// was not sent yet never makes room: RESUMED and the answers to commands, which
// can't wait as Dispatch does, exceed the limit instead.
func (ss *session) push(f frame) {
	for ss.frames.full() && (ss.conn == nil || ss.frames.first <= ss.conn.cursor) {
		ss.frames.trim(ss.frames.first)
	}
	ss.seq++
	ss.frames.push(f)
	if ss.conn != nil {
		ss.conn.nudge()
	}
}

// blocked tells whether one more dispatch would push out one that the
// connected client has yet to be sent.
func (ss *session) blocked() bool {
	return ss.conn != nil && ss.frames.full() && ss.frames.first > ss.conn.cursor
}

func (ss *session) snapshot() Session {
	return Session{
		ID: ss.id, Shard: ss.shard, Count: ss.count, Intents: ss.intents, Seq: ss.seq, Acked: ss.acked,
		Connected: ss.conn != nil && !ss.conn.leaving, Client: ss.client, Ended: ss.dead, ByClient: ss.byClient,
	}
}

// frame is a dispatch before it has a number. Either name and data are set,
// or head and data: what stands in a recorded frame before and behind the
// value of `s`.
type frame struct {
	name string
	head []byte
	data []byte
}

// append writes the frame with its sequence number.
func (f *frame) append(b []byte, seq int64) []byte {
	if f.head != nil {
		b = append(b, f.head...)
		b = strconv.AppendInt(b, seq, 10)
		return append(b, f.data...)
	}
	b = append(b, `{"t":"`...)
	b = append(b, f.name...)
	b = append(b, `","s":`...)
	b = strconv.AppendInt(b, seq, 10)
	b = append(b, `,"op":0,"d":`...)
	b = append(b, f.data...)
	return append(b, '}')
}

// ring keeps the last dispatches of a session: those with the numbers first to
// first+n-1.
type ring struct {
	limit int // from how many on it is full; it takes more
	slots []frame
	head  int
	n     int
	first int64
}

func newRing(limit int) ring { return ring{limit: limit, first: 1} }

func (r *ring) full() bool { return r.n >= r.limit }

func (r *ring) push(f frame) {
	if r.n == len(r.slots) {
		r.grow()
	}
	r.slots[(r.head+r.n)%len(r.slots)] = f
	r.n++
}

func (r *ring) grow() {
	slots := make([]frame, max(64, 2*len(r.slots)))
	for i := range r.n {
		slots[i] = r.slots[(r.head+i)%len(r.slots)]
	}
	r.slots, r.head = slots, 0
}

// at returns the frame with this number, which must be kept.
func (r *ring) at(seq int64) frame {
	return r.slots[(r.head+int(seq-r.first))%len(r.slots)]
}

// trim forgets everything up to seq.
func (r *ring) trim(seq int64) {
	for r.n > 0 && r.first <= seq {
		r.slots[r.head] = frame{}
		r.head = (r.head + 1) % len(r.slots)
		r.first++
		r.n--
	}
}
