package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// collectorKey is the key that the collector receives in a header.
const collectorKey = "hunter2-of-the-collector"

// endless is a timeout in milliseconds that outlasts every test.
const endless = "3600000"

// collector is an OpenTelemetry collector that receives spans by OTLP over HTTP.
type collector struct {
	*httptest.Server
	t *testing.T

	mu       sync.Mutex // guards the fields below
	mode     string     // "accepts", "refuses" (and quotes the request), or "hangs"
	requests int
	keys     []string
	spans    []span
}

// span is an exported span, with its attributes as text.
type span struct {
	trace, id, parent, name string
	kind                    tracepb.Span_SpanKind
	failed                  bool
	start, end              uint64
	attributes, resource    map[string]string
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{t: t, mode: "accepts"}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *collector) becomes(mode string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mode = mode
}

// ServeHTTP implements http.Handler.
func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the request was cut off
	}
	c.mu.Lock()
	mode := c.mode
	c.requests++
	c.mu.Unlock()
	switch mode {
	case "hangs":
		<-r.Context().Done()
	case "refuses":
		http.Error(w, fmt.Sprintf("unknown key in\n%v", r.Header), http.StatusUnauthorized)
	default:
		c.take(r, body)
	}
}

func (c *collector) take(r *http.Request, body []byte) {
	var data tracepb.TracesData // has the wire format of ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &data); err != nil || r.URL.Path != "/v1/traces" {
		c.t.Errorf("%s: %v", r.URL, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys = append(c.keys, r.Header.Get("X-Api-Key"))
	for _, resource := range data.ResourceSpans {
		for _, scope := range resource.ScopeSpans {
			for _, s := range scope.Spans {
				c.spans = append(c.spans, span{
					trace: hex.EncodeToString(s.TraceId), id: hex.EncodeToString(s.SpanId), parent: hex.EncodeToString(s.ParentSpanId),
					name: s.Name, kind: s.Kind, failed: s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR,
					start: s.StartTimeUnixNano, end: s.EndTimeUnixNano,
					attributes: texts(s.Attributes), resource: texts(resource.Resource.Attributes),
				})
			}
		}
	}
}

func texts(attributes []*commonpb.KeyValue) map[string]string {
	out := make(map[string]string, len(attributes))
	for _, a := range attributes {
		switch v := a.Value.Value.(type) {
		case *commonpb.AnyValue_StringValue:
			out[a.Key] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			out[a.Key] = strconv.FormatInt(v.IntValue, 10)
		case *commonpb.AnyValue_DoubleValue:
			out[a.Key] = fmt.Sprint(v.DoubleValue)
		}
	}
	return out
}

// of returns the spans of an event's trace: those of its receipt, and those of its
// attempts by listener and number.
func (c *collector) of(eventID string) (receipts []span, attempts map[string]span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	attempts = map[string]span{}
	for _, s := range c.spans {
		switch {
		case s.attributes["messaging.message.id"] != eventID:
		case s.kind == tracepb.Span_SPAN_KIND_CONSUMER:
			receipts = append(receipts, s)
		default:
			name := s.attributes["gatehook.listener_id"] + " " + s.attributes["gatehook.attempt"]
			if attempts[name].id != "" {
				c.t.Errorf("two spans for one attempt: %+v", s)
			}
			attempts[name] = s
		}
	}
	return receipts, attempts
}

// exporting returns an environment in which the server exports to the collector,
// but not before it stops.
func (c *collector) exporting(more ...string) []string {
	return append([]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.URL, "OTEL_EXPORTER_OTLP_HEADERS=x-api-key=" + collectorKey,
		"OTEL_BSP_SCHEDULE_DELAY=600000", "DATABASE_URL=" + postgrestest.URL(c.t),
	}, more...)
}

// failsFirst makes the callback answer 500 to the first attempt of each delivery.
func (s *switchable) failsFirst(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Gatehook-Attempt") == "1" {
			s.answer(http.StatusInternalServerError)
		} else {
			s.answer(http.StatusNoContent)
		}
		next.ServeHTTP(w, r)
	})
}

// TestTracesAreExported checks that an event is one trace, from its receipt to its
// last attempt, even after a restart, and that the traceparent that a callback
// receives names the attempt's span.
func TestTracesAreExported(t *testing.T) {
	t.Parallel()
	discord, c := startDiscord(t), newCollector(t)
	p := newProcess(t, discord, c.exporting("OTEL_SERVICE_NAME=the bot", "GATEHOOK_RETRY_SCHEDULE=10ms,1s,1s,2s,2s,2s,2s,2s,2s")...)
	p.start()
	awaitReady(t, discord)
	good, flaky, down := newSwitchable(t), newSwitchable(t), newSwitchable(t)
	flaky.Config.Handler = flaky.failsFirst(flaky.Config.Handler)
	down.answer(http.StatusInternalServerError)
	ids := map[*switchable]string{}
	for callback, name := range map[*switchable]string{good: "MESSAGE_CREATE", flaky: "RAW_MESSAGE_CREATE", down: "MESSAGE_*"} {
		ids[callback] = decode[struct{ ID string }](t, p, "POST", "/listeners",
			fmt.Sprintf(`{"event":%q,"url":"%s/hunter2-path?key=hunter2-query"}`, name, callback.URL), http.StatusCreated).ID
	}
	sent, err := discord.Dispatch(0, "MESSAGE_CREATE", []byte(`{"id":"1","channel_id":"2","guild_id":"3","author":{"id":"4"},"content":"hunter2-payload"}`))
	if err != nil {
		t.Fatal(err)
	}
	await := func(callback *switchable, posts int) {
		t.Helper()
		eventually(t, time.Minute, "all received", func() (bool, string) {
			n := len(callback.ids())
			return n >= posts, fmt.Sprint(n)
		})
	}
	await(good, 1)
	await(flaky, 2)
	await(down, 2)
	if code := p.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit status %d", code)
	}
	eventID := good.headers[0].Get("Gatehook-Event-Id")
	receipts, _ := c.of(eventID)
	if len(receipts) != 1 {
		t.Fatalf("%d spans of the receipt after the stop, want 1", len(receipts))
	}
	receipt := receipts[0]
	for name, want := range map[string]string{
		"messaging.destination.name": "MESSAGE_CREATE", "gatehook.shard": "0/4", "gatehook.seq": strconv.FormatInt(sent.Seq, 10), "gatehook.guild_id": "3",
	} {
		if receipt.attributes[name] != want {
			t.Errorf("the receipt's %s is %q, want %q", name, receipt.attributes[name], want)
		}
	}
	if receipt.name != "receive MESSAGE_CREATE" || receipt.parent != "" || receipt.failed || receipt.resource["service.name"] != "the bot" ||
		receipt.resource["service.version"] == "" || c.keys[0] != collectorKey {
		t.Errorf("the receipt: %+v, with the key %q", receipt, c.keys[0])
	}

	// After the restart the server finds the delivery in the database, and knows
	// nothing about the receipt.
	made := len(down.ids())
	down.answer(http.StatusNoContent)
	p.env = append(p.env, "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", "OTEL_EXPORTER_OTLP_COMPRESSION=none")
	p.start()
	await(down, made+1)
	if code := p.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit status %d", code)
	}
	receipts, attempts := c.of(eventID)
	if len(receipts) != 1 {
		t.Errorf("%d spans of the receipt after a restart, want 1", len(receipts))
	}
	checked := 0
	for callback, id := range ids {
		for _, h := range callback.headers {
			if h.Get("Gatehook-Event-Id") != eventID {
				continue
			}
			checked++
			number := h.Get("Gatehook-Attempt")
			s := attempts[id+" "+number]
			if want := "00-" + s.trace + "-" + s.id + "-01"; h.Get("Traceparent") != want {
				t.Errorf("attempt %s for %s has the traceparent %s, its span %s", number, id, h.Get("Traceparent"), want)
			}
			if s.trace != receipt.trace || s.parent != receipt.id || s.name != "POST MESSAGE_CREATE" || s.kind != tracepb.Span_SPAN_KIND_CLIENT ||
				s.start < receipt.end || s.end < s.start {
				t.Errorf("attempt %s for %s: %+v after %+v", number, id, s, receipt)
			}
			outcome, status, problem := "delivered", "204", ""
			if callback != good && number == "1" || callback == down && number != strconv.Itoa(len(down.headers)) {
				outcome, status, problem = "retry", "500", "500"
			}
			if s.attributes["gatehook.outcome"] != outcome || s.attributes["http.response.status_code"] != status ||
				s.attributes["error.type"] != problem || s.failed != (problem != "") || s.attributes["gatehook.delivery_id"] != h.Get("Webhook-Id") ||
				s.attributes["server.address"] != "127.0.0.1" || s.attributes["gatehook.delay"] == "" {
				t.Errorf("attempt %s for %s: %+v", number, id, s)
			}
		}
	}
	if checked != len(attempts) || checked < 6 {
		t.Errorf("%d attempts arrived, %d have spans", checked, len(attempts))
	}
	if all := fmt.Sprint(c.spans); strings.Contains(all, "hunter2") {
		t.Errorf("a span contains a secret: %s", all)
	}
	if strings.Contains(p.output(), collectorKey) {
		t.Error("the log contains the collector's key")
	}
}

// TestUnsampled checks the flags of traceparent. With the sampler off nothing is
// exported, and the flags say so; with only the export off they say "sampled".
func TestUnsampled(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ variable, flags string }{
		{"OTEL_TRACES_SAMPLER=always_off", "-00"},
		{"OTEL_SDK_DISABLED=true", "-01"},
	} {
		t.Run(tt.variable, func(t *testing.T) {
			t.Parallel()
			discord, c := startDiscord(t), newCollector(t)
			p := newProcess(t, discord, c.exporting(tt.variable)...)
			p.start()
			awaitReady(t, discord)
			callback := newSwitchable(t)
			listener := decode[struct{ ID string }](t, p, "POST", "/listeners", fmt.Sprintf(`{"event":"*","url":%q}`, callback.URL), http.StatusCreated)
			decode[attemptShown](t, p, "POST", "/listeners/"+listener.ID+"/test", "", http.StatusOK)
			if code := p.stop(syscall.SIGTERM); code != 0 {
				t.Errorf("exit status %d", code)
			}
			for _, h := range callback.headers {
				if !strings.HasSuffix(h.Get("Traceparent"), tt.flags) {
					t.Errorf("traceparent %q, want flags %s", h.Get("Traceparent"), tt.flags)
				}
			}
			if len(callback.headers) == 0 || c.requests > 0 {
				t.Errorf("%d POSTs, and %d requests to the collector", len(callback.headers), c.requests)
			}
		})
	}
}

// spansBy returns gatehook_tracing_spans_total for a result.
func (p *process) spansBy(result string) int {
	p.t.Helper()
	_, metrics := p.get("/metrics")
	found := regexp.MustCompile(`(?m)^gatehook_tracing_spans_total\{result="` + result + `"\} (\d+)$`).FindStringSubmatch(metrics)
	if found == nil {
		p.t.Fatalf("no %s spans among the metrics", result)
	}
	n, err := strconv.Atoi(found[1])
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}

// TestCollectorFails checks that a collector that refuses or hangs disturbs neither
// deliveries nor the drain. The failure is logged once, without headers. Spans that
// don't fit into the queue are dropped and counted.
func TestCollectorFails(t *testing.T) {
	t.Parallel()
	discord, c := startDiscord(t), newCollector(t)
	c.becomes("refuses")
	p := newProcess(t, discord, c.exporting("OTEL_BSP_SCHEDULE_DELAY=10", "OTEL_BSP_MAX_QUEUE_SIZE=8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=4",
		"OTEL_EXPORTER_OTLP_TIMEOUT="+endless, "OTEL_BSP_EXPORT_TIMEOUT="+endless, "GATEHOOK_SHUTDOWN_TIMEOUT=1m")...)
	p.start()
	awaitReady(t, discord)
	callback := newSwitchable(t)
	decode[struct{}](t, p, "POST", "/listeners", fmt.Sprintf(`{"event":"MESSAGE_CREATE","url":%q}`, callback.URL), http.StatusCreated)
	deliver := func(n int) {
		t.Helper()
		want := len(callback.ids()) + n
		for i := range n {
			if _, err := discord.Dispatch(0, "MESSAGE_CREATE", message(i)); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, time.Minute, "delivered", func() (bool, string) {
			got := len(callback.ids())
			return got == want, fmt.Sprintf("%d of %d", got, want)
		})
	}
	failed := 0
	for range 3 {
		deliver(2)
		eventually(t, time.Minute, "failed", func() (bool, string) {
			now := p.spansBy("failed")
			done := now > failed
			failed = now
			return done, fmt.Sprint(now)
		})
	}
	const complaint = `"traces can't be exported"`
	if logged := strings.Count(p.output(), complaint); logged != 1 || !strings.Contains(p.output(), "401 Unauthorized\"") {
		t.Errorf("logged %d times:\n%s", logged, p.lastLines(30))
	}
	c.becomes("hangs")
	deliver(40)
	eventually(t, time.Minute, "dropped", func() (bool, string) { // the metrics may be a second old
		n := p.spansBy("dropped")
		return n > 0, fmt.Sprint(n)
	})
	if code := p.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit status %d", code)
	}
	out := p.output()
	if strings.Contains(out, errTooLate.Error()) || !strings.Contains(out, "the last traces were not exported") {
		t.Errorf("the drain:\n%s", p.lastLines(30))
	}
	for _, secret := range []string{collectorKey, "unknown key"} {
		if strings.Contains(out, secret) {
			t.Errorf("the log contains %q", secret)
		}
	}
	if strings.Contains(out, "\n20") { // the library's own logger begins a line with the date
		t.Error("the library wrote to stderr by itself")
	}
}

// TestCollectorBehindProxy checks that HTTPS_PROXY is used for the collector too.
func TestCollectorBehindProxy(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 1)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case asked <- r.Method + " " + r.Host:
		default:
		}
		w.WriteHeader(http.StatusForbidden)
	}))
	defer proxy.Close()
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+postgrestest.URL(t), "OTEL_EXPORTER_OTLP_ENDPOINT=https://collector.example",
		"OTEL_BSP_SCHEDULE_DELAY=10", "HTTPS_PROXY="+proxy.URL)
	p.start()
	awaitReady(t, discord)
	decode[struct{}](t, p, "POST", "/listeners", fmt.Sprintf(`{"event":"*","url":%q}`, newSwitchable(t).URL), http.StatusCreated)
	if _, err := discord.Dispatch(0, "MESSAGE_CREATE", message(1)); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-asked:
		if got != "CONNECT collector.example:443" {
			t.Errorf("the proxy was asked %q", got)
		}
	case <-time.After(time.Minute):
		t.Errorf("the proxy was not asked\n%s", p.lastLines(30))
	}
}

// TestTracingCloses checks that close ends the goroutines of the export, even while
// the collector hangs.
func TestTracingCloses(t *testing.T) { //nolint:paralleltest // it sets the environment, which the library reads
	c := newCollector(t)
	c.becomes("hangs")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", c.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", endless)
	t.Setenv("OTEL_BSP_EXPORT_TIMEOUT", endless)
	cfg, err := readConfig(env("OTEL_EXPORTER_OTLP_ENDPOINT", c.URL), false)
	if err != nil {
		t.Fatal(err)
	}
	tracing, err := openTracing(t.Context(), cfg.tracing, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	_, s := tracing.traces().Tracer.Start(t.Context(), "any")
	s.End()
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("no time is left"))
	tracing.close(ended)
	tracing.close(ended)
	if failed := testutil.ToFloat64(tracing.exporter.failed); failed != 1 {
		t.Errorf("%v spans failed, want 1", failed)
	}
}

// TestShownOfAnExport checks that the logged error is one short line, without the
// collector's answer and without headers.
func TestShownOfAnExport(t *testing.T) {
	t.Parallel()
	cfg, err := readConfig(env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318",
		"OTEL_EXPORTER_OTLP_HEADERS", "a=hunter2%20hunter2,b=1", "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "c=hunter3"), false)
	if err != nil {
		t.Fatal(err)
	}
	e := &exporter{headers: cfg.tracing.headers}
	for text, want := range map[string]string{
		"traces export: failed to send to http://127.0.0.1:4318/v1/traces: 401 Unauthorized (body: hunter4)": "traces export: failed to send to http://127.0.0.1:4318/v1/traces: 401 Unauthorized",
		"retry-able request failure: body: (empty)":                                                          "retry-able request failure",
		"OTLP partial success: hunter2 hunter2\n is bad":                                                     "OTLP partial success: [redacted] is bad",
		"OTLP partial success: hunter3 hunter2%20hunter2":                                                    "OTLP partial success: [redacted] [redacted]",
		strings.Repeat("x", 1000):                                                                            strings.Repeat("x", 300),
	} {
		if got := e.shown(errors.New(text)); got != want {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
	}
}

// TestTracingConfig checks that export and sampling follow OpenTelemetry's
// variables.
func TestTracingConfig(t *testing.T) {
	t.Parallel()
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"
	for _, tt := range []struct {
		env    []string
		export bool
		share  float64
	}{
		{nil, false, 1},
		{[]string{endpoint, " http://localhost:4318 "}, true, 1},
		{[]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://collector.example/in"}, true, 1},
		{[]string{endpoint, "http://[::1]:4318", "OTEL_SDK_DISABLED", "TRUE"}, false, 1},
		{[]string{endpoint, "http://localhost", "OTEL_TRACES_EXPORTER", "none"}, false, 1},
		{[]string{endpoint, "http://localhost", "OTEL_TRACES_EXPORTER", "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"}, true, 1},
		{[]string{"OTEL_TRACES_SAMPLER", "always_off"}, false, 0},
		{[]string{"OTEL_TRACES_SAMPLER", "parentbased_always_off"}, false, 0},
		{[]string{"OTEL_TRACES_SAMPLER", "always_on", "OTEL_TRACES_SAMPLER_ARG", "unused"}, false, 1},
		{[]string{"OTEL_TRACES_SAMPLER", "traceidratio"}, false, 1},
		{[]string{"OTEL_TRACES_SAMPLER", "ParentBased_TraceIDRatio", "OTEL_TRACES_SAMPLER_ARG", "0.01"}, false, 0.01},
		{[]string{endpoint, "https://h", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://h", "OTEL_EXPORTER_OTLP_INSECURE", "True"}, true, 1},
		// Without a collector its variables don't matter.
		{[]string{"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"}, false, 1},
	} {
		c, err := readConfig(env(tt.env...), false)
		if err != nil || c.tracing.export != tt.export || c.tracing.share != tt.share {
			t.Errorf("%v: export %v, share %v, %v", tt.env, c.tracing.export, c.tracing.share, err)
		}
	}
}

// TestTracingProblems checks that values which the library would only log prevent the
// start, with one line that names the variable and the expected form and shows no
// key.
func TestTracingProblems(t *testing.T) {
	t.Parallel()
	const prefix = "OTEL_EXPORTER_OTLP_"
	for _, pair := range [][2]string{
		{prefix + "ENDPOINT", "localhost:4318"},
		{prefix + "ENDPOINT", "grpc://localhost:4317"},
		{prefix + "ENDPOINT", "http://:4318"},
		{prefix + "ENDPOINT", "http://user:hunter2@localhost:4318"},
		{prefix + "TRACES_ENDPOINT", "https://collector.example/v1/traces?key=hunter2"},
		{prefix + "ENDPOINT", "http://hunter2:bad port/"},
		{prefix + "PROTOCOL", "grpc"},
		{prefix + "TRACES_PROTOCOL", "HTTP/JSON"},
		{prefix + "COMPRESSION", "zstd"},
		{prefix + "INSECURE", "true"},
		{prefix + "TRACES_INSECURE", "1"},
		{prefix + "TIMEOUT", "10s"},
		{prefix + "HEADERS", "hunter2"},
		{prefix + "HEADERS", "a=b,x api=hunter2"},
		{prefix + "TRACES_HEADERS", "a=%hunter2"},
		{prefix + "HEADERS", "a=hunter2%0ahunter2"},
		{prefix + "CERTIFICATE", "/nowhere/ca.pem"},
		{prefix + "CERTIFICATE", "tracing_test.go"},
		{prefix + "CLIENT_CERTIFICATE", "/nowhere/cert.pem"},
		{prefix + "CLIENT_CERTIFICATE", ""}, // with CLIENT_KEY set
		{"OTEL_RESOURCE_ATTRIBUTES", "service.namespace"},
		{"OTEL_RESOURCE_ATTRIBUTES", "a=%zz"},
		{"OTEL_BSP_MAX_QUEUE_SIZE", "-1"},
		{"OTEL_BSP_SCHEDULE_DELAY", "0"},
		{"OTEL_BSP_EXPORT_TIMEOUT", "soon"},
		{"OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "99999999999"},
		{"OTEL_SDK_DISABLED", "yes"},
		{"OTEL_TRACES_EXPORTER", "jaeger"},
		{"OTEL_TRACES_SAMPLER", "jaeger_remote"},
		{"OTEL_TRACES_SAMPLER_ARG", "NaN"},
		{"OTEL_TRACES_SAMPLER_ARG", "1.5"},
		{"OTEL_TRACES_SAMPLER_ARG", "a few"},
	} {
		name, value := pair[0], pair[1]
		values := []string{name, value, prefix + "ENDPOINT", "https://collector.example", "OTEL_TRACES_SAMPLER", "traceidratio"}
		if value == "" {
			values = append(values, prefix+"CLIENT_KEY", "/nowhere/key.pem")
		}
		_, err := readConfig(env(values...), false)
		if err == nil || !strings.HasPrefix(err.Error(), name+"=") || !strings.Contains(err.Error(), "is not valid: expected ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s=%s: %v", name, value, err)
		} else if secret := strings.Contains(value, "hunter2"); secret == strings.Contains(err.Error(), value) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s=%s is shown as %v", name, value, err)
		}
	}
}

// TestPlainCollector checks that the files for TLS are refused, with the name of
// the variable, when the collector's URL is http://.
func TestPlainCollector(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_KEY"} {
		_, err := readConfig(env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318", name, "/etc/some.pem"), false)
		if want := name + `="/etc/some.pem" is not valid: expected nothing, since the collector's URL is http://`; err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
}
