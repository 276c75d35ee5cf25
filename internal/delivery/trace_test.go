package delivery

import (
	"encoding/binary"
	"regexp"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/gatehook/gatehook/internal/event"
)

// dispatched returns the event with a sequence number. All events are of one session.
func dispatched(seq int64) *event.Event {
	shard := event.Shard{ID: 2, Count: 5}
	return &event.Event{ID: event.DispatchID(1, "s", shard, seq), Name: "GUILD_BAN_ADD", Shard: shard, Seq: seq}
}

// TestTraceparent: all attempts of an event are in one trace, each with its own parent
// and the sampler's decision.
func TestTraceparent(t *testing.T) {
	t.Parallel()
	form := regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-(0[01])$`)
	made := func(traces Traces, e *event.Event) (id, span, flags string) {
		t.Helper()
		recorded, parent := traces.attempt(t.Context(), &record{job: job{stored: &event.Stored{Event: *e}}})
		parts := form.FindStringSubmatch(parent)
		if parts == nil || recorded != nil {
			t.Fatalf("%q, want the form %v; the span is %v", parent, form, recorded)
		}
		return parts[1], parts[2], parts[3]
	}
	trace1, span1, flags := made(Traces{}, dispatched(1))
	trace2, span2, _ := made(Traces{}, dispatched(1))
	trace3, _, _ := made(Traces{}, dispatched(2))
	if trace1 != trace2 || trace1 == trace3 || span1 == span2 || span1 == "0000000000000000" || flags != "01" {
		t.Errorf("traces %s, %s and %s, parents %s and %s, flags %s", trace1, trace2, trace3, span1, span2, flags)
	}
	var asked trace.TraceID
	none := Traces{Sampled: func(id trace.TraceID) bool { asked = id; return false }}
	if id, _, flags := made(none, dispatched(1)); flags != "00" || asked.String() != id {
		t.Errorf("flags %s of %s, the sampler was asked about %s", flags, id, asked)
	}
}

// TestSamplersSeeRandomIDs: samplers judge a trace by the last seven or eight bytes of
// its id. For the events of one session, these bytes must be spread over all values.
// Otherwise a share of 1 % could select none of the events, or all.
func TestSamplersSeeRandomIDs(t *testing.T) {
	t.Parallel()
	const events, parts = 10_000, 20
	var eight, seven [parts]int
	for seq := range int64(events) {
		id, _ := traceOf(dispatched(seq).ID)
		last := binary.BigEndian.Uint64(id[8:])
		eight[last/(1<<63/parts*2+1)]++
		seven[(last<<8)/(1<<63/parts*2+1)]++
	}
	for _, counts := range [][parts]int{eight, seven} {
		for _, n := range counts {
			if n < events/parts*7/10 || n > events/parts*13/10 { // more than six standard deviations
				t.Fatalf("%d events fall into %d equal parts as %v", events, parts, counts)
			}
		}
	}
}

// BenchmarkTraceparent measures what tracing costs per POST: with no events exported,
// with one in a hundred, and with all (without the export itself).
func BenchmarkTraceparent(b *testing.B) {
	recs := make([]record, 1000)
	for i := range recs {
		recs[i].job.stored = &event.Stored{Event: *dispatched(int64(i))}
	}
	exported := func(share float64) Traces {
		sampler := sdktrace.TraceIDRatioBased(share)
		provider := sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler), sdktrace.WithIDGenerator(SpanIDs{}))
		return Traces{Tracer: provider.Tracer(""), Sampled: func(id trace.TraceID) bool {
			return sampler.ShouldSample(sdktrace.SamplingParameters{TraceID: id}).Decision == sdktrace.RecordAndSample
		}}
	}
	for name, traces := range map[string]Traces{"off": {}, "a hundredth": exported(0.01), "all": exported(1)} {
		b.Run(name, func(b *testing.B) {
			ctx := b.Context()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				rec := &recs[i%len(recs)]
				span, _ := traces.attempt(ctx, rec)
				endSpan(span, rec, nil)
			}
		})
	}
}
