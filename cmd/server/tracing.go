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
	// flushTimeout limits the last export, after everything else has stopped: a
	// collector that hangs must not hold up a drain.
	flushTimeout = 3 * time.Second
	// minLogInterval is the least time between two log lines about exports.
	minLogInterval = time.Minute
	// minRedacted is the length in bytes from which the value of a header is redacted
	// in log lines: a shorter value is no secret, and may match any part of a line.
	minRedacted = 6
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

// openTracing sets up the export that c configures, without connecting to the
// collector. The caller runs or closes it.
func openTracing(ctx context.Context, c tracingConfig, log *slog.Logger, reg prometheus.Registerer) (*tracing, error) {
	t := &tracing{
		sampler: sdktrace.TraceIDRatioBased(c.share), log: log,
		exporter: newExporter(ctx, c, log, reg), stopping: make(chan struct{}),
	}
	if !c.export {
		return t, nil
	}
	// The library logs to one global logger, by default to stderr.
	otel.SetLogger(logr.FromSlogHandler(messageOnly{log.Handler()}))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { t.exporter.complain(err, 0) }))
	client, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("export traces: %w", err)
	}
	t.exporter.SpanExporter = client
	// The later options win: the environment may override the service's name.
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

// traces returns the tracer and the sampler for delivery.
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

// run exports until stop is called, and then exports the rest.
func (t *tracing) run(ctx context.Context) error {
	select {
	case <-t.stopping:
	case <-ctx.Done():
	}
	t.close(ctx)
	return nil
}

func (t *tracing) stop() { close(t.stopping) }

// close exports the remaining spans, within flushTimeout and until ctx ends, and
// drops the others. Nothing is recorded afterwards. It may be called again.
func (t *tracing) close(ctx context.Context) {
	if t.provider == nil {
		return
	}
	ctx, cancel := context.WithTimeoutCause(ctx, flushTimeout, errors.New("the collector is too slow for a server that stops"))
	defer cancel()
	defer context.AfterFunc(ctx, func() { t.exporter.abort(context.Cause(ctx)) })()
	// Shutdown ends at the latest when the exports are aborted. With a context that
	// ends earlier, its goroutine could outlive the server.
	if err := t.provider.Shutdown(context.WithoutCancel(ctx)); err != nil {
		t.exporter.complain(err, 0)
	}
	t.exporter.end()
}

// queue limits the spans that wait to be exported, and counts those that it drops.
// The library's own queue behind it would drop spans silently, but never becomes that
// full.
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

// exporter counts exported and lost spans, and logs failed exports at a limited rate.
type exporter struct {
	sdktrace.SpanExporter
	log     *slog.Logger
	headers []secret.Value // values that no log line may show
	waiting atomic.Int64   // spans that have ended and are not exported

	exported, failed, dropped prometheus.Counter

	aborted context.Context // ends every export
	abort   context.CancelCauseFunc

	mu     sync.Mutex // guards the fields below
	logged time.Time  // when the last line was logged
	lost   int        // spans lost since then
}

func newExporter(ctx context.Context, c tracingConfig, log *slog.Logger, reg prometheus.Registerer) *exporter {
	spans := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "gatehook", Subsystem: "tracing", Name: "spans_total", Help: "Spans recorded, by result.",
	}, []string{"result"})
	e := &exporter{
		log: log, headers: c.headers,
		exported: spans.WithLabelValues("exported"), failed: spans.WithLabelValues("failed"), dropped: spans.WithLabelValues("dropped"),
	}
	e.aborted, e.abort = context.WithCancelCause(context.WithoutCancel(ctx))
	reg.MustRegister(spans, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "gatehook", Subsystem: "tracing", Name: "spans_queued", Help: "Spans waiting to be exported.",
	}, func() float64 { return float64(e.waiting.Load()) }))
	return e
}

// ExportSpans implements sdktrace.SpanExporter. It never returns an error, because the
// caller would only log it again.
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

// complain logs an error of the export, with the number of spans lost since the
// last line, at most once per minLogInterval.
func (e *exporter) complain(err error, lost int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lost += lost
	if time.Since(e.logged) < minLogInterval {
		return
	}
	e.log.LogAttrs(e.aborted, slog.LevelWarn, "traces can't be exported", slog.Int("spans_lost", e.lost), slog.String("error", e.shown(err)))
	e.logged, e.lost = time.Now(), 0
}

// end logs losses that were not logged yet, because nobody will read them in the
// metrics.
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

// shown returns an error's text as one line of limited length. It leaves out the
// collector's answer, which may quote the request with its key.
func (e *exporter) shown(err error) string {
	text, _, _ := strings.Cut(err.Error(), "body: ")
	for _, h := range e.headers {
		if len(h.Reveal()) >= minRedacted {
			text = strings.ReplaceAll(text, h.Reveal(), "[redacted]")
		}
	}
	text = strings.Join(strings.Fields(text), " ")
	return strings.TrimRight(text[:min(len(text), 300)], " (:")
}

// messageOnly is a log handler that drops the attributes of messages, because some of
// those that the library logs are secret.
type messageOnly struct{ slog.Handler }

// Handle implements slog.Handler.
func (h messageOnly) Handle(ctx context.Context, r slog.Record) error {
	return h.Handler.Handle(ctx, slog.NewRecord(r.Time, r.Level, "opentelemetry: "+r.Message, r.PC))
}

// WithAttrs implements slog.Handler.
func (h messageOnly) WithAttrs([]slog.Attr) slog.Handler { return h }

// WithGroup implements slog.Handler.
func (h messageOnly) WithGroup(string) slog.Handler { return h }
