package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// lifecycle runs the parts of the program. They start in the order in which
// they are added, consumers before producers, and stop in the reverse order,
// each one waited for, all of them together within a bound.
type lifecycle struct {
	log   *slog.Logger
	parts []*part
	ended chan *part
	// kill ends what does not stop in time.
	kill context.CancelCauseFunc
	ctx  context.Context
}

// part is one running piece.
type part struct {
	name string
	stop func()
	done chan struct{}
	err  error
	told bool // wait has returned the error
}

var (
	errDrained = errors.New("drained")
	errTooLate = errors.New("the drain took longer than GATEHOOK_SHUTDOWN_TIMEOUT")
)

// newLifecycle makes one whose parts are not bound to ctx's end, only to its
// values: they are stopped one by one.
func newLifecycle(ctx context.Context, log *slog.Logger) *lifecycle {
	l := &lifecycle{log: log, ended: make(chan *part, 16)}
	l.ctx, l.kill = context.WithCancelCause(context.WithoutCancel(ctx))
	return l
}

// add starts a part. run returns when stop was called and the part is done, or
// when its context ends; stop must not block.
func (l *lifecycle) add(name string, run func(context.Context) error, stop func()) {
	p := &part{name: name, stop: stop, done: make(chan struct{})}
	l.parts = append(l.parts, p)
	go func() {
		defer close(p.done)
		p.err = run(l.ctx)
		l.ended <- p
	}()
}

// addCancelled starts a part that ends with its context.
func (l *lifecycle) addCancelled(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancelCause(l.ctx)
	l.add(name, func(context.Context) error { return run(ctx) }, func() { cancel(errDrained) })
}

// wait returns when ctx ends (nil), or when a part failed.
func (l *lifecycle) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case p := <-l.ended:
		p.told = true
		if p.err == nil {
			return fmt.Errorf("%s ended without being told to", p.name)
		}
		return fmt.Errorf("%s: %w", p.name, p.err)
	}
}

// stop ends the parts, the last first. What is not done within the timeout is
// killed: it is safe, only later, so what such a part says is logged and is no
// failure of the drain.
func (l *lifecycle) stop(timeout time.Duration) error {
	deadline := time.AfterFunc(timeout, func() { l.kill(errTooLate) })
	defer deadline.Stop()
	defer l.kill(errDrained)
	var problems []error
	for _, p := range slices.Backward(l.parts) {
		start := time.Now()
		p.stop()
		<-p.done
		switch {
		case p.err == nil || p.told || errors.Is(p.err, errDrained):
		case errors.Is(context.Cause(l.ctx), errTooLate):
			l.log.LogAttrs(l.ctx, slog.LevelWarn, "cut off: what it had under way is done after the next start",
				slog.String("part", p.name), slog.Any("error", p.err))
		default:
			problems = append(problems, fmt.Errorf("stop %s: %w", p.name, p.err))
		}
		l.log.LogAttrs(l.ctx, slog.LevelInfo, "stopped", slog.String("part", p.name), slog.Duration("took", time.Since(start)))
	}
	l.parts = nil
	return errors.Join(problems...)
}
