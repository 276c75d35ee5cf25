package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway/identify"
)

// link is one connection and the session that it carries, from the dial to the
// end. It is used once.
//
// Three goroutines work on it: the reader, which handles payloads and waits for
// the journal; the heart (heart.go); and the closer. Any of them that finds
// that the link must end cancels the link's context with the cause. From then
// on only the closer touches the socket: it sends the close frame, then ends
// the socket.
type link struct {
	shard *shard
	out   sink
	conn  *discord.Conn
	log   *slog.Logger
	// primary: the shard's status describes this connection, not a second one
	// that was opened for more intents.
	primary atomic.Bool

	// These belong to the reader until run has returned.
	session event.Session  // zero before READY
	intents event.Intents  // to IDENTIFY with
	class   identify.Class // of the IDENTIFY
	before  *ending        // of the previous link, if this one tries the same again
	turn    *identify.Turn // nil for a link that resumes
	ending  ending
	heard   bool      // a dispatch came
	liveAt  time.Time // when live was closed
	// final: the link ends at RESUMED. Discord sends RESUMED after everything
	// that it dispatched before (Discord: Resuming). Nothing else promises that:
	// the acknowledgement of a heartbeat may overtake waiting events.
	final bool
	// unanswered counts the RESUMEs of the session whose RESUMED was not read.
	// Discord may have sent these RESUMEDs, and then replays them.
	unanswered int
	// stuckAt is the last sequence number before a message that could not be
	// inflated; 0 for none.
	stuckAt int64
	loading *loading
	origins *origins
	// late: the reader was held up, so what it reads may have waited for it.
	late bool

	live           chan struct{} // closed at READY or RESUMED
	beatAsked      chan struct{} // holds a token when Discord asks for a heartbeat
	sessionID      atomic.Pointer[string]
	sessionIntents atomic.Int64
	// seenSeq is the highest sequence number that Discord is known to have sent
	// on this connection, or the one that was resumed from; 0 for none.
	seenSeq   atomic.Int64
	presence  atomic.Int64   // the version of the presence that the session shows; 0 if unknown
	presences discord.Window // the changes of the presence on this connection; used by Commands only
	overlap   atomic.Pointer[overlap]

	// busy is how long the reader did not wait for the socket, in nanoseconds.
	// busySince is when it last stopped waiting, in Unix nanoseconds; 0 while it
	// waits.
	busy      atomic.Int64
	busySince atomic.Int64

	mu    sync.Mutex // guards pulse
	pulse pulse
}

func newLink(s *shard, out sink, session event.Session) *link {
	l := &link{
		shard: s, out: out, session: session, log: s.log, intents: session.Intents,
		origins: newOrigins(nil),
		loading: newLoading(), live: make(chan struct{}), beatAsked: make(chan struct{}, 1),
	}
	l.sessionID.Store(&session.ID)
	l.sessionIntents.Store(int64(session.Intents))
	l.ending.session = session.ID != ""
	l.unanswered = 1 // the session's previous owner may have been interrupted
	l.presences = discord.Window{Length: presenceWindow + presenceMargin, Limit: presenceLimit}
	return l
}

// inherit copies from before, the previous link of a resumed session, what is
// known about the session: its presence, the state of its guilds, and its
// unanswered RESUMEs. before has ended, and may be nil.
func (l *link) inherit(before *running) {
	if before != nil && l.session.ID != "" && before.session.ID == l.session.ID {
		l.presence.Store(before.presence.Load())
		l.origins = before.origins
		l.unanswered = before.unanswered
		l.stuckAt = before.stuckAt
	}
}

// run connects, resumes the session or begins a new one, and passes on the
// events that arrive until the connection ends.
func (l *link) run(parent context.Context) ending {
	l.ending.cause = l.connect(parent)
	if l.ending.cause != nil {
		l.turn.Release()
		return l.ending
	}
	l.ending.opened = true
	l.log.LogAttrs(parent, slog.LevelInfo, "connected", slog.Bool("resume", l.ending.session), l.age())
	ctx, end := context.WithCancelCause(parent)
	var tasks sync.WaitGroup
	tasks.Go(func() {
		select {
		case <-ctx.Done():
		case <-l.shard.lapse.leaves():
			// A session that is not stored is nobody else's.
			if *l.sessionID.Load() != "" {
				end(errLapsed)
			}
			<-ctx.Done()
		}
		_, reason := closeText(context.Cause(ctx))
		l.conn.Close(discord.CodeKeepSession, reason)
	})
	tasks.Go(func() { l.load(ctx) })
	end(l.receive(ctx, end, &tasks))
	tasks.Wait()
	l.conn.Release()
	l.turn.Release()
	l.ending.cause = context.Cause(ctx)
	l.ending.session = l.session.ID != ""
	if l.isLive() {
		l.ending.served = max(time.Since(l.liveAt), 1)
	}
	l.shard.turns.Refuse(discord.CloseCodeOf(l.ending.cause), l.intents, l.shard.id.Count)
	l.reportEnd(parent)
	return l.ending
}

func (l *link) connect(ctx context.Context) (err error) {
	s := l.shard
	if l.session.ID == "" {
		if l.turn, err = s.turns.Turn(ctx, l.class, s.id.ID); err != nil {
			return err
		}
		// More intents may be needed than when the shard began to wait.
		l.intents = s.intents()
		if err := s.turns.Allowed(l.intents, s.id.Count); err != nil {
			return err
		}
	}
	// Before the wait for a slot: while the database is away, confirm takes its
	// time.
	if err := l.confirm(ctx); err != nil {
		return err
	}
	if err := s.dials.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer s.dials.Release(1)
	first := l.before == nil || l.before.greeted
	for i, url := range s.urls(l.session.ResumeURL, l.before) {
		began := time.Now()
		l.conn, err = l.dial(ctx, url)
		if err == nil && i > 0 {
			s.silent.note(l.session.ResumeURL, time.Now())
		}
		// A first dial that fails at once may do so by chance. One that was not
		// answered has cost the session seconds of its life. One that ends long
		// after its bound shows only that this process was stopped.
		silent := errors.Is(err, errNoAnswer) && time.Since(began) < 2*s.timing.resume
		if err == nil || ctx.Err() != nil || first && !silent {
			return err
		}
	}
	return err
}

// errNoAnswer is why a dial of a session's URL was given up.
var errNoAnswer = errors.New("the dial was not answered in time")

// dial opens the connection.
func (l *link) dial(ctx context.Context, url string) (*discord.Conn, error) {
	s := l.shard
	bounded := ctx
	if l.session.ID != "" {
		// A URL that does not answer must not outlast the session.
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeoutCause(ctx, s.timing.resume, errNoAnswer)
		defer cancel()
	}
	conn, err := s.dialer.Dial(bounded, url)
	if err == nil || ctx.Err() == nil { // otherwise the dial was given up
		s.noteDial(ctx, url, err)
	}
	return conn, err
}

// receive handles payloads until the connection or ctx ends, and returns why it
// ended.
func (l *link) receive(ctx context.Context, end context.CancelCauseFunc, tasks *sync.WaitGroup) error {
	limit := l.shard.timing.hello
	if l.session.ID != "" {
		limit = l.shard.timing.resume
	}
	patience := time.AfterFunc(limit, func() { end(errNoHello) })
	defer patience.Stop()
	for waits := time.Now(); ; {
		f, err := l.conn.Read()
		now := time.Now()
		l.late = l.late && now.Sub(waits) < caughtUp
		l.busySince.Store(now.UnixNano())
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			err = l.unread(ctx, f, err)
		case f.Op == discord.OpHello:
			patience.Stop()
			err = l.greet(ctx, f, end, tasks)
		case f.Op == discord.OpDispatch:
			err = l.dispatch(ctx, f)
		default:
			err = l.handle(ctx, f, now)
		}
		if err != nil {
			return err
		}
		l.busySince.Store(0)
		waits = time.Now()
		l.busy.Add(int64(waits.Sub(now)))
		l.late = l.late || waits.Sub(now) > heldUp
	}
}

const (
	// heldUp is how long a payload takes to be handled before those behind it count as
	// late. Then they do until the reader has waited for one for caughtUp.
	heldUp   = time.Second
	caughtUp = time.Millisecond
)

// load waits until the session has its guilds, and says which are missing.
func (l *link) load(ctx context.Context) {
	select {
	case <-l.live:
	case <-ctx.Done():
		return
	}
	t := l.shard.timing
	patience := t.load
	if event.Intents(l.sessionIntents.Load())&event.IntentGuilds == 0 {
		patience = t.settle
	}
	if missing := l.loading.watch(ctx, patience, t.loadBound); len(missing) > 0 {
		l.log.LogAttrs(ctx, slog.LevelWarn, "guilds of the session did not come, it counts as complete without them",
			slog.Int("missing", len(missing)), slog.Any("guilds", missing[:min(len(missing), 10)]))
	}
}

// unread goes on after a payload that could not be read. An error ends the
// connection.
func (l *link) unread(ctx context.Context, f discord.Frame, err error) error {
	if flawed, ok := errors.AsType[*discord.PayloadError](err); ok {
		return l.drop(ctx, f, string(flawed.Flaw), err.Error())
	}
	if !errors.Is(err, discord.ErrDefect) {
		return err
	}
	// A new connection has a new stream, so a RESUME cures this. If the replay
	// fails at the same place, it would do so for ever: the session goes on after
	// what can't be inflated.
	at := l.seenSeq.Load()
	again := l.session.ID != "" && l.ending.greeted && !l.isLive() && at > 0 && at == l.stuckAt
	l.stuckAt = at
	if again {
		f = discord.Frame{Op: discord.OpDispatch, Seq: at + 1}
		progress := l.ending.progress
		if err := l.drop(ctx, f, "not_inflated", err.Error()); err != nil {
			return err
		}
		l.ending.progress, l.ending.skipped = progress, true // nothing arrived
	}
	return err
}

// greet answers HELLO: it starts the heart, and resumes or begins the session.
func (l *link) greet(ctx context.Context, f discord.Frame, end context.CancelCauseFunc, tasks *sync.WaitGroup) error {
	if l.ending.greeted {
		l.ignore(ctx, "second_hello", "HELLO came twice")
		return nil
	}
	var h discord.Hello
	err := json.Unmarshal(f.Data, &h)
	interval, usable := h.Interval()
	if err != nil || !usable {
		l.warnOdd(ctx, "HELLO has no usable heartbeat_interval", err)
	}
	l.ending.greeted = true
	tasks.Go(func() { l.sendHeartbeats(ctx, end, interval) })
	s := l.shard
	if l.session.ID == "" {
		l.setStatus(func(st *ShardStatus) { st.State = StateIdentifying })
		tasks.Go(func() { l.failSend(ctx, end, l.identify(ctx)) })
	} else if err := l.resume(ctx); err != nil {
		return err
	}
	// Only now that the heart beats: the journal may make these calls wait.
	for _, name := range []string{"SHARD_CONNECT", "CONNECT"} {
		if err := l.putNotice(ctx, name, shardData{s.id.ID}); err != nil {
			return err
		}
	}
	return nil
}

// confirm is shard.confirm, and returns errLapsed if the link is to resume a session that
// another instance may have by now.
func (l *link) confirm(ctx context.Context) error {
	err := l.shard.confirm(ctx)
	if err == nil && l.session.ID != "" && l.shard.lapse.look() {
		err = errLapsed
	}
	return err
}

// resume sends RESUME with the stored sequence number, not the received one: an
// event that is not stored yet would be lost with this process.
func (l *link) resume(ctx context.Context) error {
	s := l.shard
	seq := l.out.stored(l.session.ID)
	if seq == 0 || seq > l.session.Seq {
		seq = l.session.Seq
	}
	if err := l.confirm(ctx); err != nil {
		return err
	}
	l.unanswered++
	l.seenSeq.Store(seq)
	s.metrics.resumes.Inc()
	s.setStatus(func(st *ShardStatus) { st.Resumes++ })
	return l.conn.Send(ctx, discord.OpResume, discord.Resume{Token: s.token.Reveal(), SessionID: l.session.ID, Seq: seq})
}

// permit waits until the shard may IDENTIFY.
func (l *link) permit(ctx context.Context) error {
	if err := l.turn.Permit(ctx); err != nil {
		return err
	}
	if err := l.shard.confirm(ctx); err != nil {
		return err
	}
	// Another shard may have been refused while this one waited.
	return l.shard.turns.Allowed(l.intents, l.shard.id.Count)
}

func (l *link) identify(ctx context.Context) error {
	s := l.shard
	presence := s.presence(ctx)
	defer l.turn.Release()
	if err := l.permit(ctx); err != nil {
		return err
	}
	if err := s.beginSession(ctx); err != nil {
		return err
	}
	for !l.turn.Holds() {
		if err := l.permit(ctx); err != nil {
			return err
		}
	}
	l.ending.identified = time.Now()
	l.presence.Store(presence.version)
	s.metrics.identifies.Inc()
	s.setStatus(func(st *ShardStatus) { st.Identifies++ })
	err := l.conn.Send(ctx, discord.OpIdentify, discord.Identify{
		Token:      s.token.Reveal(),
		Properties: discord.Properties{OS: runtime.GOOS, Browser: "gatehook", Device: "gatehook"},
		Shard:      [2]int{s.id.ID, s.id.Count},
		Intents:    int64(l.intents),
		Presence:   presence.d,
	})
	if err != nil {
		return err
	}
	// Although the connection may have ended: the IDENTIFY was sent.
	late, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), s.timing.begin, errors.New("the database is slow"))
	defer cancel()
	if err := l.turn.Sent(late); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "could not note that an IDENTIFY was sent late", slog.Any("error", err))
	}
	return nil
}

// failSend ends the connection if a send failed. It first gives the reader time
// to find the reason: Discord's close frame says more than a broken pipe.
func (l *link) failSend(ctx context.Context, end context.CancelCauseFunc, err error) {
	if err != nil && discord.Sleep(ctx, time.Second) == nil {
		end(err)
	}
}

// handle handles every payload other than HELLO and dispatches. An error ends
// the connection.
func (l *link) handle(ctx context.Context, f discord.Frame, now time.Time) error {
	switch f.Op {
	case discord.OpHeartbeatACK:
		l.mu.Lock()
		l.pulse.acked(now)
		latency, regular := l.pulse.latency, l.pulse.regular
		l.mu.Unlock()
		l.shard.metrics.latency.Observe(latency.Seconds())
		l.setStatus(func(st *ShardStatus) { st.AckedAt, st.Latency = now, latency })
		if l.session.ID != "" && !l.heard && regular >= maxSilentBeats {
			return errUnanswered
		}
	case discord.OpHeartbeat:
		wake(l.beatAsked)
	case discord.OpReconnect:
		return errReconnect
	case discord.OpInvalidSession:
		if string(f.Data) == "true" {
			return errTryResume
		}
		return errInvalid
	default:
		l.ignore(ctx, "unknown_op", fmt.Sprintf("op %d", f.Op))
	}
	return nil
}

// dispatch passes on a dispatch.
func (l *link) dispatch(ctx context.Context, f discord.Frame) error {
	l.heard = true
	l.seenSeq.Store(max(l.seenSeq.Load(), f.Seq))
	switch {
	case len(f.Name) == 0 || f.Seq == 0:
		return l.drop(ctx, f, "no_event", "a dispatch without a name or a sequence number")
	case !event.IsName(f.Name):
		return l.drop(ctx, f, "event_name", fmt.Sprintf("%.200q is no event name", f.Name))
	}
	begins, resumed := string(f.Name) == "READY", string(f.Name) == "RESUMED"
	if begins {
		if err := l.begin(ctx, f); err != nil {
			return err
		}
	}
	switch {
	case l.session.ID == "":
		return l.drop(ctx, f, "no_event", "a dispatch before READY")
	case f.Seq == l.session.Seq && resumed:
		// RESUMED may have the sequence number of the last replayed event, and is
		// still new. A RESUMED with a lower number is a replay: it belongs to an
		// earlier connection, and does not show that this connection works.
		if err := l.putNotice(ctx, "RESUMED", json.RawMessage(bytes.Clone(f.Data))); err != nil {
			return err
		}
	case f.Seq <= l.session.Seq:
		l.shard.metrics.dropped.WithLabelValues("duplicate").Inc()
		return nil
	default:
		if err := l.putDispatch(ctx, f); err != nil {
			return err
		}
	}
	// Only after the event: nothing that the live link causes may come before it.
	if begins || resumed {
		l.establish(ctx, resumed)
	}
	if !resumed {
		return nil
	}
	l.unanswered = max(l.unanswered-1, 0)
	if err := l.putNotice(ctx, "SHARD_RESUME", shardData{l.shard.id.ID}); err != nil || !l.final {
		return err
	}
	if l.unanswered > 0 {
		// This RESUMED may be the replayed answer to an earlier RESUME. The next
		// RESUME brings at least one more.
		l.unanswered--
		return errLeaving
	}
	return errReplaced
}

// begin takes over the session that READY announces.
func (l *link) begin(ctx context.Context, f discord.Frame) error {
	var r discord.Ready
	if err := json.Unmarshal(f.Data, &r); err != nil || r.SessionID == "" {
		l.warnOdd(ctx, "READY has no usable session_id, or a field of the wrong type", err)
	}
	if r.SessionID == "" {
		// The session's events are worth having even without an id. Discord answers
		// a RESUME with a made-up id with op 9, and then a notice reports what was
		// lost.
		r.SessionID = "unnamed-" + uuid.NewString()
	}
	if lost := l.shard.lost; lost != nil {
		lost.NextSessionID, lost.NextSeq = r.SessionID, f.Seq
		if err := l.putNotice(ctx, "GATEHOOK_SESSION_LOST", lost); err != nil {
			return err
		}
		l.shard.lost = nil
	}
	l.unanswered = 0
	// putDispatch sets Seq.
	l.session = event.Session{ID: r.SessionID, ResumeURL: discord.WithCompression(r.ResumeURL, l.conn.Compression()), Intents: l.intents}
	l.sessionID.Store(&r.SessionID)
	l.sessionIntents.Store(int64(l.intents))
	l.setStatus(func(st *ShardStatus) { st.SessionSince = time.Now() })
	if l.intents&event.IntentGuilds != 0 {
		l.loading.expect(r.Guilds)
	}
	l.origins = newOrigins(r.Guilds)
	return nil
}

// establish puts the link in service after READY or RESUMED.
func (l *link) establish(ctx context.Context, resumed bool) {
	l.ending.progress = true
	// The status comes first: once the link is live, others may set a problem.
	l.setStatus(l.connected(time.Now()))
	if !l.isLive() {
		if resumed {
			l.loading.expect(nil) // Discord lists the guilds in READY only
		}
		l.liveAt = time.Now()
		close(l.live)
	}
	l.log.LogAttrs(ctx, slog.LevelInfo, "session in service", slog.Bool("resumed", resumed), slog.Int64("seq", l.session.Seq), l.age(), slog.String("intents", l.session.Intents.String()))
}

// age returns the age of the session, as far as this process knows it.
func (l *link) age() slog.Attr {
	since := l.shard.snapshot().SessionSince
	if since.IsZero() || !l.primary.Load() {
		return slog.Duration("session_age", 0)
	}
	return slog.Duration("session_age", time.Since(since).Round(time.Millisecond))
}

func (l *link) isLive() bool { return isClosed(l.live) }

// lacks returns the intents among wanted that the session does not have. The
// link must be live.
func (l *link) lacks(wanted event.Intents) event.Intents {
	return wanted &^ event.Intents(l.sessionIntents.Load())
}

func (l *link) connected(now time.Time) func(*ShardStatus) {
	intents := event.Intents(l.sessionIntents.Load())
	return func(st *ShardStatus) {
		st.State, st.Problem, st.ConnectedSince, st.Intents = StateConnected, "", now, intents
		if st.SessionSince.IsZero() {
			st.SessionSince = now
		}
	}
}

// setStatus changes the shard's status if the status describes this link.
func (l *link) setStatus(f func(*ShardStatus)) {
	if l.primary.Load() {
		l.shard.setStatus(f)
	}
}

// putDispatch turns a dispatch into an event and passes it on.
func (l *link) putDispatch(ctx context.Context, f discord.Frame) error {
	s := l.shard
	data := bytes.Clone(f.Data)
	if data == nil {
		data = []byte("null")
	}
	session := l.session
	session.Seq = f.Seq
	l.ending.progress = true
	e := &event.Event{
		ID:   event.DispatchID(s.turns.ApplicationID(), l.session.ID, s.id, f.Seq),
		Name: s.metrics.event(f.Name), Shard: s.id, Seq: f.Seq, ReceivedAt: s.now(), Late: l.late || !l.isLive(), Data: data,
	}
	event.FindIDs(e)
	at := time.Now().Add(l.conn.Ahead()) // by Discord's clock
	e.Origin = l.origins.of(e, at)
	if err := l.out.put(ctx, &session, e); err != nil {
		return err
	}
	// Only now: an event that the sink did not take must be replayed.
	l.session = session
	l.origins.note(e, at)
	if o := l.overlap.Load(); o != nil {
		o.add(e)
	}
	l.loading.note(e)
	return nil
}

// putNotice passes on a notice: an event that Discord did not number.
func (l *link) putNotice(ctx context.Context, name string, data any) error {
	e, err := newNotice(l.shard.id, l.shard.now(), name, data)
	if err != nil {
		return err
	}
	return l.out.put(ctx, nil, e)
}

// reportEnd records the end of the connection in the status, the log and the
// metrics. It also sends notices of the end, if greet sent notices of the
// beginning.
func (l *link) reportEnd(ctx context.Context) {
	code, reason := closeText(l.ending.cause)
	s := l.shard
	s.metrics.reconnects.WithLabelValues(reconnectReason(l.ending.cause)).Inc()
	l.setStatus(func(st *ShardStatus) { st.LastClose = Close{At: time.Now(), Code: code, Reason: reason} })
	l.log.LogAttrs(ctx, slog.LevelInfo, "disconnected", slog.Int("code", code), slog.Any("cause", l.ending.cause),
		slog.Int64("seq", l.session.Seq), l.age())
	if !l.ending.greeted || errors.Is(l.ending.cause, errClaimLost) {
		return
	}
	var notices []*event.Event
	for _, name := range []string{"SHARD_DISCONNECT", "DISCONNECT"} {
		e, err := newNotice(s.id, s.now(), name, disconnectData{ShardID: s.id.ID, Code: code, Reason: reason})
		if err != nil {
			l.log.LogAttrs(ctx, slog.LevelError, "could not make an event", slog.String("event", name), slog.Any("error", err))
			continue
		}
		notices = append(notices, e)
	}
	l.out.putSoon(ctx, s.timing.notice, notices...)
}

// drop gives up one payload, and a notice says so: it may have been an event. If
// its place in the session is known, the session goes on after it; otherwise the
// next dispatch's place is after it too, and a RESUME in between brings it once
// more. An error ends the connection.
func (l *link) drop(ctx context.Context, f discord.Frame, reason, detail string) error {
	isReady, isResumed := string(f.Name) == "READY", string(f.Name) == "RESUMED"
	// RESUMED may have the last number again, see dispatch.
	isReplay := f.Seq > 0 && (f.Seq < l.session.Seq || f.Seq == l.session.Seq && !isResumed)
	switch {
	case f.Op > discord.OpDispatch, isReady, isResumed && f.Seq == 0, l.session.ID == "" && f.Op < 0:
		// Without it the connection is of no use: it may have been READY, or a
		// command of Discord's.
		l.ignore(ctx, reason, detail)
		return fmt.Errorf("%w: %s", discord.ErrDefect, detail)
	case isReplay:
		l.shard.metrics.dropped.WithLabelValues("duplicate").Inc()
		return nil
	}
	l.ignore(ctx, reason, detail)
	l.heard = true
	l.seenSeq.Store(max(l.seenSeq.Load(), f.Seq))
	e, err := newNotice(l.shard.id, l.shard.now(), "GATEHOOK_PAYLOAD_DROPPED", newDroppedData(l.shard.id.ID, l.session.ID, f, reason))
	if err != nil {
		return err
	}
	if isResumed {
		// That it came is all that counts.
		if err := l.out.put(ctx, nil, e); err != nil {
			return err
		}
		f.Data = nil
		return l.dispatch(ctx, f)
	}
	if l.session.ID == "" || f.Seq == 0 {
		return l.out.put(ctx, nil, e)
	}
	session := l.session
	session.Seq = f.Seq
	if err := l.out.put(ctx, &session, e); err != nil {
		return err
	}
	l.session = session
	l.ending.progress = true
	return nil
}

// ignore counts and logs a payload that is not handed on.
func (l *link) ignore(ctx context.Context, reason, detail string) {
	l.shard.metrics.dropped.WithLabelValues(reason).Inc()
	l.log.LogAttrs(ctx, slog.LevelWarn, "payload dropped", slog.String("reason", reason), slog.String("detail", detail))
}

// warnOdd logs what is wrong with a payload that is used anyway.
func (l *link) warnOdd(ctx context.Context, detail string, err error) {
	l.log.LogAttrs(ctx, slog.LevelWarn, "payload not as documented", slog.String("detail", detail), slog.Any("error", err))
}
