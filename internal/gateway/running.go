package gateway

import "context"

// running is a link at work.
type running struct {
	*link
	cancel context.CancelCauseFunc
	done   chan struct{}
	end    ending // once done is closed
}

func start(ctx context.Context, l *link) *running {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &running{link: l, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.end = l.run(ctx)
	}()
	return r
}

// stop ends the link and waits for it.
func (r *running) stop(cause error) {
	r.cancel(cause)
	<-r.done
}

func (r *running) ended() bool { return isClosed(r.done) }
