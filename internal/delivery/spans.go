package delivery

import (
	"context"
	"strconv"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/gatehook/gatehook/internal/callback"
	"github.com/gatehook/gatehook/internal/event"
)

// Traces configures the tracing of deliveries. Its zero value records no span, and lets
// receivers record every trace.
type Traces struct {
	// Tracer records the spans; nil records none. It must take their ids from SpanIDs.
	Tracer trace.Tracer
	// Sampled decides by the id alone whether a trace is recorded, so that all
	// servers agree; nil records every trace. Receivers whose samplers follow their
	// parent decide the same.
	Sampled func(trace.TraceID) bool
}

func (t Traces) sampled(id trace.TraceID) bool { return t.Sampled == nil || t.Sampled(id) }

// eventKey is the context key of the event's id, from which SpanIDs derives the ids of
// a receipt.
type eventKey struct{}

// SpanIDs is the IDGenerator of Traces.Tracer. It derives the ids of a receipt from the
// event's id; all other ids are random.
type SpanIDs struct{}

// NewIDs returns the ids of a receipt.
func (SpanIDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	id, ok := ctx.Value(eventKey{}).(uuid.UUID)
	if !ok {
		id = uuid.New() // a span without an event
	}
	return traceOf(id)
}

// NewSpanID returns the id of one more span of a trace.
func (SpanIDs) NewSpanID(context.Context, trace.TraceID) trace.SpanID { return newSpanID() }

// received records the first span of an event's trace: from the event's receipt until now,
// when it is stored and its deliveries begin.
func (t Traces) received(ctx context.Context, e *event.Event, now time.Time) {
	if t.Tracer == nil {
		return
	}
	if id, _ := traceOf(e.ID); !t.sampled(id) {
		return
	}
	attrs := []attribute.KeyValue{
		semconv.MessagingSystemKey.String("discord"),
		semconv.MessagingOperationTypeReceive,
		semconv.MessagingOperationName("receive"),
		semconv.MessagingDestinationName(e.Name),
		semconv.MessagingMessageID(e.ID.String()),
		attribute.String("gatehook.shard", e.Shard.String()),
	}
	if e.Seq != 0 {
		attrs = append(attrs, attribute.Int64("gatehook.seq", e.Seq))
	}
	if e.GuildID != 0 {
		attrs = append(attrs, attribute.String("gatehook.guild_id", e.GuildID.String()))
	}
	_, span := t.Tracer.Start(context.WithValue(ctx, eventKey{}, e.ID), "receive "+e.Name, trace.WithNewRoot(),
		trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(e.ReceivedAt), trace.WithAttributes(attrs...))
	span.End(trace.WithTimestamp(now)) // not by the machine's clock: the beginning is not either
}

// attempt starts the span of a record's attempt, and returns it with the POST's
// traceparent. The span is nil if the trace is not recorded.
func (t Traces) attempt(ctx context.Context, rec *record) (trace.Span, string) {
	e := &rec.job.stored.Event
	id, receipt := traceOf(e.ID)
	sampled := t.sampled(id)
	if t.Tracer == nil || !sampled {
		return nil, traceparent(id, newSpanID(), sampled)
	}
	ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: id, SpanID: receipt, TraceFlags: trace.FlagsSampled,
	}))
	_, span := t.Tracer.Start(ctx, "POST "+e.Name, trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(rec.startedAt))
	return span, traceparent(id, span.SpanContext().SpanID(), true)
}

// endSpan ends the span of an attempt, if there is one, and adds the outcome to it. The
// span shows only the host and port of the callback's URL, because the rest may be
// secret.
func endSpan(span trace.Span, rec *record, t *callback.Target) {
	if span == nil {
		return
	}
	number := rec.attempt()
	attrs := []attribute.KeyValue{
		semconv.HTTPRequestMethodPost,
		semconv.MessagingMessageID(rec.job.stored.ID.String()),
		attribute.String("gatehook.listener_id", event.ListenerID(rec.job.listener)),
		attribute.String("gatehook.delivery_id", rec.job.id().String()),
		attribute.Int("gatehook.attempt", number),
		attribute.String("gatehook.outcome", rec.outcome.kind.String()),
		attribute.Float64("gatehook.delay", rec.startedAt.Sub(rec.job.stored.ReceivedAt).Seconds()),
	}
	if number > 1 {
		attrs = append(attrs, semconv.HTTPRequestResendCount(number-1))
	}
	if t != nil {
		host, port := t.Server()
		attrs = append(attrs, semconv.ServerAddress(host))
		if n, err := strconv.Atoi(port); err == nil {
			attrs = append(attrs, semconv.ServerPort(n))
		}
	}
	if rec.result.Status != 0 {
		attrs = append(attrs, semconv.HTTPResponseStatusCode(rec.result.Status))
	}
	if rec.outcome.kind != delivered {
		kind, text := rec.failure()
		attrs = append(attrs, semconv.ErrorTypeKey.String(kind))
		span.SetStatus(codes.Error, text)
	}
	span.SetAttributes(attrs...)
	span.End(trace.WithTimestamp(rec.startedAt.Add(time.Since(rec.began))))
}
