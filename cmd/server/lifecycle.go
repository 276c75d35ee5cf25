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
// they are added, consumers before producers. They stop in the reverse order,
// one after the other, all of them within one timeout.
type lifecycle struct {
	log   *slog.Logger
	parts []*part
	ended chan *part
	kill  context.CancelCauseFunc // cancels ctx to end parts that don't stop in time
	ctx   context.Context
}

// part is one running part of the program.
type part struct {
	name     string
	stop     func()
	done     chan struct{} // closed when run has returned and err is set
	err      error
	reported bool // wait has returned err
}

var (
	errDrained = errors.New("drained")
	errTooLate = errors.New("the drain took longer than GATEHOOK_SHUTDOWN_TIMEOUT")
)

// newLifecycle returns a lifecycle whose parts use ctx's values but don't end
// with it: stop ends them one by one.
func newLifecycle(ctx context.Context, log *slog.Logger) *lifecycle {
	l := &lifecycle{log: log, ended: make(chan *part, 16)}
	l.ctx, l.kill = context.WithCancelCause(context.WithoutCancel(ctx))
	return l
}

// add starts a part. run must return once stop was called and the work is done,
// or when its context ends; stop must not block.
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

// wait returns nil when ctx ends, and an error when a part ends before that.
func (l *lifecycle) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case p := <-l.ended:
		p.reported = true
		if p.err == nil {
			return fmt.Errorf("%s ended by itself", p.name)
		}
		return fmt.Errorf("%s: %w", p.name, p.err)
	}
}

// stop ends the parts, the last one first, and kills those that are not done
// within the timeout. Their unfinished work is done after the next start, so
// their errors are logged and don't fail the drain.
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
		case p.err == nil || p.reported || errors.Is(p.err, errDrained):
		case errors.Is(context.Cause(l.ctx), errTooLate):
			l.log.LogAttrs(l.ctx, slog.LevelWarn, "cut off: its unfinished work is done after the next start",
				slog.String("part", p.name), slog.Any("error", p.err))
		default:
			problems = append(problems, fmt.Errorf("stop %s: %w", p.name, p.err))
		}
		l.log.LogAttrs(l.ctx, slog.LevelInfo, "stopped", slog.String("part", p.name), slog.Duration("took", time.Since(start)))
	}
	l.parts = nil
	return errors.Join(problems...)
}
