package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/gatehook/gatehook/internal/secret"
)

// tracingConfig holds the settings from OpenTelemetry's variables (OpenTelemetry:
// Environment Variable Specification, OTLP Exporter). We check these variables here,
// because OpenTelemetry's library, which reads most of them itself, only logs invalid
// ones, with their values.
type tracingConfig struct {
	// export means that spans are recorded and sent to a collector.
	export bool
	// share is the share of events that are traced, from 0 to 1, both here and in
	// receivers whose samplers follow their parent.
	share float64
	// queue is how many spans may wait to be exported.
	queue int
	// headers are the values of the headers sent to the collector.
	headers []secret.Value
}

func (r *reader) tracing() tracingConfig {
	c := tracingConfig{share: r.sampler()}
	disabled := r.oneOf("OTEL_SDK_DISABLED", "false", "true", "false") == "true"
	if exporter := r.exactly("OTEL_TRACES_EXPORTER", "otlp", "otlp", "none"); disabled || exporter == "none" {
		return c
	}
	scheme := r.collector("OTEL_EXPORTER_OTLP_ENDPOINT")
	if traces := r.collector("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"); traces != "" {
		scheme = traces
	}
	if c.export = scheme != ""; !c.export {
		return c
	}
	c.queue = r.count("OTEL_BSP_MAX_QUEUE_SIZE", 2048)
	for _, name := range []string{"OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"} {
		r.count(name, 1)
	}
	r.attributes("OTEL_RESOURCE_ATTRIBUTES")
	for _, prefix := range []string{"OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_"} {
		r.exactly(prefix+"PROTOCOL", "http/protobuf", "http/protobuf", "http/json")
		r.exactly(prefix+"COMPRESSION", "none", "none", "gzip")
		r.count(prefix+"TIMEOUT", 1)
		r.security(prefix, scheme)
		c.headers = append(c.headers, r.headers(prefix+"HEADERS")...)
	}
	return c
}

// sampler reads the share of events that are traced. Traces begin here, so a
// sampler that follows its parent always acts as its sampler for root spans.
func (r *reader) sampler() float64 {
	const name, arg = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
	switch s := strings.ToLower(r.text(name, "parentbased_always_on")); strings.TrimPrefix(s, "parentbased_") {
	case "always_on":
		return 1
	case "always_off":
		return 0
	case "traceidratio":
		s := r.text(arg, "1")
		share, err := strconv.ParseFloat(s, 64)
		if err != nil || math.IsNaN(share) || share < 0 || share > 1 {
			r.problem(arg, s, "a share from 0 to 1 such as 0.01", nil)
		}
		return share
	default:
		r.problem(name, s, "always_on, always_off or traceidratio, or one of them after parentbased_", nil)
		return 1
	}
}

// collector reads a URL and returns its scheme; "" if it is not set. It refuses a URL
// with a user or a query, which the library would ignore, and does not show it,
// because these may contain a password.
func (r *reader) collector(name string) (scheme string) {
	s := r.text(name, "")
	if s == "" {
		return ""
	}
	u, err := url.Parse(s)
	switch {
	case err != nil, u.User != nil, u.RawQuery != "":
		r.problem(name, "[redacted]", "a URL without user and query such as http://localhost:4318; keys go into OTEL_EXPORTER_OTLP_HEADERS", nil)
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		r.problem(name, s, "a URL such as http://localhost:4318", nil)
	default:
		return u.Scheme
	}
	return "https" // for an invalid URL, because https also allows certificates
}

// exactly is like oneOf but case-sensitive, like the other readers of these variables.
func (r *reader) exactly(name, byDefault string, values ...string) string {
	s := r.text(name, byDefault)
	if !slices.Contains(values, s) {
		r.problem(name, s, strings.Join(values, " or "), nil)
	}
	return s
}

func (r *reader) count(name string, byDefault int) int {
	s := r.text(name, strconv.Itoa(byDefault))
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < 1 {
		r.problem(name, s, "a whole number of 1 or more", nil)
		return byDefault
	}
	return int(n)
}

func (r *reader) attributes(name string) {
	for pair := range strings.SplitSeq(r.text(name, ""), ",") {
		_, value, found := strings.Cut(pair, "=")
		if _, err := url.PathUnescape(value); err != nil || !found && strings.TrimSpace(pair) != "" {
			r.problem(name, pair, "pairs joined with commas such as service.namespace=bots,deployment.environment.name=test", nil)
		}
	}
}

// headers reads the values of headers. It never shows them: they hold API keys.
func (r *reader) headers(name string) (values []secret.Value) {
	for i, pair := range strings.Split(r.text(name, ""), ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		key, escaped, found := strings.Cut(pair, "=")
		value, err := url.PathUnescape(escaped)
		value = strings.TrimSpace(value)
		if err != nil || !found || !httpguts.ValidHeaderFieldName(strings.TrimSpace(key)) || !httpguts.ValidHeaderFieldValue(value) {
			r.problem(name, "[redacted]", "name=value pairs joined with commas, with commas and % in values percent-encoded", fmt.Errorf("pair %d is not valid", i+1))
			continue
		}
		values = append(values, secret.New(value), secret.New(escaped))
	}
	return values
}

// security checks that no variable contradicts the collector's scheme, and that
// the files for TLS can be read. In the library INSECURE overrides the scheme, so that
// keys for an https:// URL would be sent in plain text.
func (r *reader) security(prefix, scheme string) {
	plain := strconv.FormatBool(scheme == "http")
	if s := r.text(prefix+"INSECURE", plain); !strings.EqualFold(s, plain) {
		r.problem(prefix+"INSECURE", s, plain+" or nothing, as the URL's scheme says", nil)
	}
	for _, name := range []string{prefix + "CERTIFICATE", prefix + "CLIENT_CERTIFICATE", prefix + "CLIENT_KEY"} {
		if s := r.text(name, ""); s != "" && scheme == "http" {
			r.problem(name, s, "nothing, since the collector's URL is http://", nil)
			return
		}
	}
	if path := r.text(prefix+"CERTIFICATE", ""); path != "" {
		pem, err := os.ReadFile(path)
		if err == nil && !x509.NewCertPool().AppendCertsFromPEM(pem) {
			err = errors.New("it contains none")
		}
		if err != nil {
			r.problem(prefix+"CERTIFICATE", path, "a file with certificates in PEM", err)
		}
	}
	cert, key := r.text(prefix+"CLIENT_CERTIFICATE", ""), r.text(prefix+"CLIENT_KEY", "")
	if cert == "" && key == "" {
		return
	}
	if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
		r.problem(prefix+"CLIENT_CERTIFICATE", cert, "a file with a certificate in PEM, and its key in "+prefix+"CLIENT_KEY", err)
	}
}
