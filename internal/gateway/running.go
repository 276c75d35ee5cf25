package gateway

import "context"

// running is a link whose run is under way or has returned.
type running struct {
	*link
	cancel context.CancelCauseFunc
	done   chan struct{}
	end    ending // valid once done is closed
}

// start runs a link in a new goroutine. The caller waits for done.
func start(ctx context.Context, l *link) *running {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &running{link: l, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.end = l.run(ctx)
	}()
	return r
}

// stop ends the link and waits until it has ended.
func (r *running) stop(cause error) {
	r.cancel(cause)
	<-r.done
}

func (r *running) ended() bool { return isClosed(r.done) }
