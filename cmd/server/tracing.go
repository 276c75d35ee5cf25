package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/gatehook/gatehook/internal/delivery"
	"github.com/gatehook/gatehook/internal/secret"
)

const (
	// flushTimeout bounds the last export, when all else has stopped: a
	// collector that hangs must not hold up a drain.
	flushTimeout = 3 * time.Second
	// complaintsApart is the least time between two lines of log about exports.
	complaintsApart = time.Minute
	// shortestKey is from how many bytes on a header is looked for in what is
	// logged: a shorter one keeps nothing out, and is found everywhere.
	shortestKey = 6
)

// tracing exports the spans of deliveries to an OpenTelemetry collector, if
// there is one.
type tracing struct {
	sampler sdktrace.Sampler
	// provider is nil if nothing is exported.
	provider *sdktrace.TracerProvider
	exporter *exporter
	log      *slog.Logger
	stopping chan struct{}
}

// openTracing makes the export that c asks for. It connects to nothing. Whoever
// has opened it runs or closes it.
func openTracing(ctx context.Context, c tracingConfig, log *slog.Logger, reg prometheus.Registerer) (*tracing, error) {
	t := &tracing{
		sampler: sdktrace.TraceIDRatioBased(c.share), log: log,
		exporter: newExporter(ctx, c, log, reg), stopping: make(chan struct{}),
	}
	if !c.export {
		return t, nil
	}
	// The library speaks of itself to one logger for all; never to stderr.
	otel.SetLogger(logr.FromSlogHandler(wordless{log.Handler()}))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { t.exporter.complain(err, 0) }))
	client, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("export traces: %w", err)
	}
	t.exporter.SpanExporter = client
	// What the environment says of the service wins over what stands before it.
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(),
		resource.WithAttributes(semconv.ServiceName("gatehook"), semconv.ServiceVersion(version())), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("export traces: %w", err)
	}
	t.provider = sdktrace.NewTracerProvider(sdktrace.WithResource(about), sdktrace.WithSampler(t.sampler), sdktrace.WithIDGenerator(delivery.SpanIDs{}),
		sdktrace.WithSpanProcessor(&queue{
			SpanProcessor: sdktrace.NewBatchSpanProcessor(t.exporter, sdktrace.WithMaxQueueSize(c.queue)),
			exporter:      t.exporter, size: int64(c.queue),
		}))
	return t, nil
}

// traces is what delivery is to record.
func (t *tracing) traces() delivery.Traces {
	out := delivery.Traces{Sampled: func(id trace.TraceID) bool {
		return t.sampler.ShouldSample(sdktrace.SamplingParameters{TraceID: id}).Decision == sdktrace.RecordAndSample
	}}
	if t.provider != nil {
		out.Tracer = t.provider.Tracer("github.com/gatehook/gatehook",
			trace.WithInstrumentationVersion(version()), trace.WithSchemaURL(semconv.SchemaURL))
	}
	return out
}

// run exports until stop is called, and then what is left.
func (t *tracing) run(ctx context.Context) error {
	select {
	case <-t.stopping:
	case <-ctx.Done():
	}
	t.close(ctx)
	return nil
}

func (t *tracing) stop() { close(t.stopping) }

// close exports what is left, for some seconds and while ctx lasts, and gives
// up the rest. Nothing is recorded after it. It may be called again.
func (t *tracing) close(ctx context.Context) {
	if t.provider == nil {
		return
	}
	ctx, cancel := context.WithTimeoutCause(ctx, flushTimeout, errors.New("the collector is too slow for a server that stops"))
	defer cancel()
	defer context.AfterFunc(ctx, func() { t.exporter.abort(context.Cause(ctx)) })()
	// It has no end of its own but that of the exports: else its goroutine could
	// outlive the server.
	if err := t.provider.Shutdown(context.WithoutCancel(ctx)); err != nil {
		t.exporter.complain(err, 0)
	}
	t.exporter.end()
}

// queue bounds the spans that wait to be exported, and counts those that it
// turns away: the library's own, behind it, would drop them without a word, but
// never gets as many.
type queue struct {
	sdktrace.SpanProcessor
	exporter *exporter
	size     int64
}

// OnEnd implements sdktrace.SpanProcessor.
func (q *queue) OnEnd(s sdktrace.ReadOnlySpan) {
	if q.exporter.waiting.Add(1) > q.size {
		q.exporter.waiting.Add(-1)
		q.exporter.dropped.Inc()
		return
	}
	q.SpanProcessor.OnEnd(s)
}

// exporter counts what becomes of spans, and says when they can't be exported,
// but not for each batch of them.
type exporter struct {
	sdktrace.SpanExporter
	log *slog.Logger
	// headers are what no line of log may show.
	headers []secret.Value
	// waiting is the spans that have ended and are not exported.
	waiting                   atomic.Int64
	exported, failed, dropped prometheus.Counter
	// aborted ends every export.
	aborted context.Context
	abort   context.CancelCauseFunc

	mu   sync.Mutex
	said time.Time // when the last line was
	lost int       // spans since then
}

func newExporter(ctx context.Context, c tracingConfig, log *slog.Logger, reg prometheus.Registerer) *exporter {
	spans := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "gatehook", Subsystem: "tracing", Name: "spans_total", Help: "Spans recorded, by what became of them.",
	}, []string{"result"})
	e := &exporter{
		log: log, headers: c.headers,
		exported: spans.WithLabelValues("exported"), failed: spans.WithLabelValues("failed"), dropped: spans.WithLabelValues("dropped"),
	}
	e.aborted, e.abort = context.WithCancelCause(context.WithoutCancel(ctx))
	reg.MustRegister(spans, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "gatehook", Subsystem: "tracing", Name: "spans_queued", Help: "Spans that wait to be exported.",
	}, func() float64 { return float64(e.waiting.Load()) }))
	return e
}

// ExportSpans implements sdktrace.SpanExporter. Its errors end here: whoever
// calls it would only log them.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(e.aborted, func() { cancel(context.Cause(e.aborted)) })() //nolint:contextcheck // ends with either
	err := e.SpanExporter.ExportSpans(ctx, spans)
	e.waiting.Add(-int64(len(spans)))
	if err != nil {
		e.failed.Add(float64(len(spans)))
		e.complain(err, len(spans))
		return nil
	}
	e.exported.Add(float64(len(spans)))
	return nil
}

// complain logs an error of the export, and how many spans were lost, once in a
// while.
func (e *exporter) complain(err error, lost int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lost += lost
	if time.Since(e.said) < complaintsApart {
		return
	}
	e.log.LogAttrs(e.aborted, slog.LevelWarn, "traces can't be exported", slog.Int("spans_lost", e.lost), slog.String("error", e.shown(err)))
	e.said, e.lost = time.Now(), 0
}

// end says what was lost and not said yet: nobody reads the metrics any more.
func (e *exporter) end() {
	left := e.waiting.Swap(0)
	e.dropped.Add(float64(left))
	e.mu.Lock()
	defer e.mu.Unlock()
	if lost := e.lost + int(left); lost > 0 {
		e.log.LogAttrs(e.aborted, slog.LevelWarn, "the last traces were not exported", slog.Int("spans_lost", lost))
	}
	e.lost = 0
}

// shown is what an error says, in one line of bounded length. What a collector
// answers is left out: it may quote the request, with its key.
func (e *exporter) shown(err error) string {
	text, _, _ := strings.Cut(err.Error(), "body: ")
	for _, h := range e.headers {
		if len(h.Reveal()) >= shortestKey {
			text = strings.ReplaceAll(text, h.Reveal(), "[redacted]")
		}
	}
	text = strings.Join(strings.Fields(text), " ")
	return strings.TrimRight(text[:min(len(text), 300)], " (:")
}

// wordless is a log that takes messages without what they are about: of what the
// library tells of, some is secret.
type wordless struct{ slog.Handler }

// Handle implements slog.Handler.
func (h wordless) Handle(ctx context.Context, r slog.Record) error {
	return h.Handler.Handle(ctx, slog.NewRecord(r.Time, r.Level, "opentelemetry: "+r.Message, r.PC))
}

// WithAttrs implements slog.Handler.
func (h wordless) WithAttrs([]slog.Attr) slog.Handler { return h }

// WithGroup implements slog.Handler.
func (h wordless) WithGroup(string) slog.Handler { return h }
