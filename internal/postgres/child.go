package postgres

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// runChild runs PostgreSQL until it ends by itself, or until it is shut down because
// ctx has ended.
func (e *Embedded) runChild(ctx context.Context) error {
	// Linux ends the child together with the thread that started it, so that
	// thread must live as long as the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	args := []string{"-D", e.cluster}
	for _, s := range e.settings {
		args = append(args, "-c", s)
	}
	// Not bound to ctx: the child is shut down, not killed.
	cmd := e.owner.command(context.WithoutCancel(ctx), e.bin.path("postgres"), args...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	ended := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		e.shutDown(ctx, cmd, ended)
	}()
	why := e.logLines(ctx, stderr)
	err = cmd.Wait()
	close(ended)
	<-stopped
	if err != nil {
		return fmt.Errorf("PostgreSQL: %w: %s", err, why)
	}
	return nil
}

// shutDown waits for ctx to end and then ends the child: first by a fast shutdown. If
// that takes too long, it tries an immediate one, after which the next start has to
// recover, and then kills the child.
func (e *Embedded) shutDown(ctx context.Context, cmd *exec.Cmd, ended <-chan struct{}) {
	select {
	case <-ended:
		return
	case <-ctx.Done():
	}
	for _, signal := range []unix.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGKILL} {
		if err := cmd.Process.Signal(signal); err != nil {
			return // it has ended
		}
		timer := time.NewTimer(stopTimeout)
		select {
		case <-ended:
			timer.Stop()
			return
		case <-timer.C:
			e.log.LogAttrs(context.WithoutCancel(ctx), slog.LevelWarn, "PostgreSQL does not end", slog.String("signal", signal.String()))
		}
	}
}

// logLines logs PostgreSQL's output, and returns the line that says why it ended.
func (e *Embedded) logLines(ctx context.Context, r io.Reader) (why string) {
	var last string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" {
			continue
		}
		last = line
		level := slog.LevelDebug
		if strings.HasPrefix(line, "FATAL") || strings.HasPrefix(line, "PANIC") {
			level = slog.LevelWarn
		}
		// Connections that are refused while it starts or stops are expected.
		if strings.Contains(line, "the database system is ") || errors.Is(context.Cause(ctx), errStopped) {
			level = slog.LevelDebug
		}
		if level == slog.LevelWarn {
			why = line
		}
		if strings.Contains(line, "No space left on device") {
			why = line + ": " + remedies[diskFull]
		}
		e.log.LogAttrs(ctx, level, "PostgreSQL says", slog.String("line", line))
	}
	return cmp.Or(why, last)
}
