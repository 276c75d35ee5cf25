package delivery

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/gatehook/gatehook/internal/event"
)

// TestSpans: the span of an attempt shows its outcome, and its parent is the receipt of
// its event. Notices have a receipt, too.
func TestSpans(t *testing.T) {
	t.Parallel()
	moved := newReceiver(t, func(call) (int, http.Header) { return http.StatusFound, nil })
	gone := newReceiver(t, func(call) (int, http.Header) { return http.StatusGone, nil })
	operator := newReceiver(t, ok)
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder), sdktrace.WithIDGenerator(SpanIDs{}), sdktrace.WithSampler(sdktrace.AlwaysSample()))
	b := setup(t, Config{Traces: Traces{Tracer: provider.Tracer("")}}, moved.URL, gone.URL, "http://127.0.0.1:1/port-below-1024", operator.URL, operator.URL+"/parsed")
	b.registry.change(4, func(l *event.Listener) { l.Event = "RAW_GATEHOOK_*" })
	broken := b.commit(t, 1, 1, 5)
	broken.Events[0].Data = []byte(`[]`)
	b.deliver(t, broken)
	b.deliver(t, b.commit(t, 1, 1, 1, 2, 3))
	operator.await(t, 4)
	b.stop()

	receipts := map[trace.SpanID]trace.TraceID{}
	names, attempts := map[string]int{}, map[string]int{}
	for _, s := range recorder.Ended() {
		if s.SpanKind() == trace.SpanKindConsumer {
			receipts[s.SpanContext().SpanID()] = s.SpanContext().TraceID()
			names[s.Name()]++
		}
	}
	for _, s := range recorder.Ended() {
		if s.SpanKind() == trace.SpanKindConsumer {
			continue
		}
		if receipts[s.Parent().SpanID()] != s.SpanContext().TraceID() {
			t.Errorf("the parent of %s is not a receipt", s.Name())
		}
		set := attribute.NewSet(s.Attributes()...)
		text := func(key attribute.Key) string { v, _ := set.Value(key); return v.AsString() }
		attempts[text("gatehook.outcome")+" "+text("error.type")]++
		if text("server.address") != "127.0.0.1" {
			t.Errorf("%s: %v", s.Name(), s.Attributes())
		}
	}
	if diff := cmp.Diff(map[string]int{
		"receive MESSAGE_CREATE": 2, "receive GATEHOOK_DELIVERY_EXHAUSTED": 3, "receive GATEHOOK_LISTENER_DISABLED": 1,
	}, names); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]int{
		"unparsable unparsable": 1, "retry 302": 2, "exhausted 302": 1, "gone 410": 1, "retry refused": 2, "exhausted refused": 1, "delivered ": 4,
	}, attempts); diff != "" {
		t.Error(diff)
	}
}
