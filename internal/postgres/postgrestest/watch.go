package postgrestest

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// watch traces a pool, and finds goroutines that acquire a connection while they hold
// another one: as many of them as the pool has connections wait for each other. What a
// test itself holds, such as a transaction that locks rows, does not count.
type watch struct {
	mu     sync.Mutex // guards the fields below
	holder map[*pgx.Conn]hold
	faults []string
}

// hold is by which goroutine, and where, a connection was acquired.
type hold struct{ goroutine, at string }

// TraceAcquireStart implements pgxpool.AcquireTracer.
func (w *watch) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	here := hold{goroutine(), caller()}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.holder {
		if h.goroutine == here.goroutine {
			w.faults = append(w.faults, fmt.Sprintf("%s acquires a connection while %s holds one", here.at, h.at))
		}
	}
	return ctx
}

// TraceAcquireEnd implements pgxpool.AcquireTracer.
func (w *watch) TraceAcquireEnd(_ context.Context, _ *pgxpool.Pool, data pgxpool.TraceAcquireEndData) {
	at := caller()
	if data.Err != nil || data.Conn == nil || strings.Contains(at, "_test.go:") {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holder[data.Conn] = hold{goroutine(), at}
}

// TraceRelease implements pgxpool.ReleaseTracer.
func (w *watch) TraceRelease(_ *pgxpool.Pool, data pgxpool.TraceReleaseData) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.holder, data.Conn)
}

// TraceQueryStart implements pgx.QueryTracer, as every tracer has to.
func (*watch) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

// TraceQueryEnd implements pgx.QueryTracer.
func (*watch) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (w *watch) report(t testing.TB) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.faults {
		t.Error(f)
	}
}

// goroutine names the goroutine that calls it.
func goroutine() string {
	var b [64]byte
	head := b[:runtime.Stack(b[:], false)]
	return string(bytes.Fields(head)[1]) // "goroutine 7 [running]:"
}

// caller returns the place outside of pgx and this module's package postgres from
// which a connection is asked for.
func caller() string {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	for {
		f, more := frames.Next()
		if !strings.Contains(f.File, "/jackc/pgx") && !strings.Contains(f.File, "/internal/postgres/") {
			return fmt.Sprintf("%s:%d", f.File, f.Line)
		}
		if !more {
			return "?"
		}
	}
}
