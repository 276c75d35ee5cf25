package callback

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// maxExcerpt is how much of a response a Result keeps, in bytes.
const maxExcerpt = 1024

// Class is the kind of a POST's result, for metrics. The set of classes is small and
// fixed.
type Class int

// The classes. A complete response has the class of its status, any other result that
// of its failure.
const (
	Class2xx Class = iota
	Class3xx
	Class4xx
	Class429
	Class5xx
	ClassTimeout
	ClassRefused // nothing was sent: the address is refused, or the registration is unusable
	ClassDNS
	ClassTLS
	ClassConnection
	Classes // the number of classes
)

// String returns the metric's label.
func (c Class) String() string {
	return [...]string{"2xx", "3xx", "4xx", "429", "5xx", "timeout", "refused", "dns", "tls", "connection"}[c]
}

func classOf(status int) Class {
	if status == http.StatusTooManyRequests {
		return Class429
	}
	switch status / 100 {
	case 2:
		return Class2xx
	case 3:
		return Class3xx
	case 4:
		return Class4xx
	default:
		return Class5xx
	}
}

// Result is the result of one POST.
type Result struct {
	// Status is 0 when there was no response.
	Status int
	// RetryAfter is the header Retry-After as received.
	RetryAfter string
	// Response is the beginning of the body, at most 1 KiB. The event's tokens are
	// redacted in it, unless Class is Class2xx and Err is nil.
	Response []byte
	// Duration is how long the POST took, from dial to the end of the response.
	Duration time.Duration
	Class    Class
	// Err is why there was no usable response. Its text contains neither the callback's
	// path, nor a header, nor anything that the callback sent.
	Err error
}

// excerpt returns the part of a response that a result keeps. Callbacks echo payloads
// that they can't handle, and people read excerpts, so tokens are redacted. That
// happens before the cut, which could leave half a token. The response of a success is
// not stored, so it is not searched.
func excerpt(r *Result, data []byte) []byte {
	text := r.Response
	if r.Err != nil || r.Class != Class2xx {
		text = event.RedactTokens(text, data)
	}
	return text[:min(len(text), maxExcerpt)]
}

var errTimeout = errors.New("no complete response within the attempt timeout")

// maxProblem bounds the text of an error, in bytes.
const maxProblem = 300

// failed turns an error into a result whose text is safe to show, and short.
func failed(ctx context.Context, err error) Result {
	r := explain(ctx, err)
	if text := r.Err.Error(); len(text) > maxProblem {
		r.Err = errors.New(strings.ToValidUTF8(text[:maxProblem], ""))
	}
	return r
}

func explain(ctx context.Context, err error) Result {
	if cause := context.Cause(ctx); cause != nil {
		return Result{Class: ClassConnection, Err: fmt.Errorf("the attempt was ended: %w", cause)}
	}
	var (
		refused *RefusedAddressError
		before  refusal
		dns     *net.DNSError
		op      *net.OpError
		timeout net.Error
	)
	switch {
	case errors.As(err, &refused):
		return Result{Class: ClassRefused, Err: refused}
	case errors.As(err, &before):
		return Result{Class: ClassRefused, Err: before.error}
	case errors.As(err, &dns):
		return Result{Class: ClassDNS, Err: fmt.Errorf("the name %s does not resolve: %s", dns.Name, dns.Err)}
	case tlsProblem(err) != "":
		return Result{Class: ClassTLS, Err: errors.New("TLS: " + tlsProblem(err))}
	case errors.Is(err, errTimeout), errors.As(err, &timeout) && timeout.Timeout():
		return Result{Class: ClassTimeout, Err: errTimeout}
	case errors.As(err, &op):
		return Result{Class: ClassConnection, Err: fmt.Errorf("%s: %w", op.Op, op.Err)}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Result{Class: ClassConnection, Err: errors.New("the connection was closed before the response was complete")}
	default:
		return Result{Class: ClassConnection, Err: unquoted(err)}
	}
}

// tlsProblem describes an error of the handshake, or returns "" for any other one. The
// errors' own texts quote the certificate, which can have any length.
func tlsProblem(err error) string {
	var (
		verify   *tls.CertificateVerificationError
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		record   tls.RecordHeaderError
		alert    tls.AlertError
	)
	switch {
	case errors.As(err, &hostname):
		return "the certificate is not valid for the host of the url"
	case errors.As(err, &unknown):
		return "the certificate was not issued by a trusted authority"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the certificate has expired or is not valid yet"
	case errors.As(err, &invalid), errors.As(err, &verify):
		return "the certificate can't be verified"
	case errors.As(err, &record):
		return "the server does not speak TLS on this port"
	case errors.As(err, &alert):
		return "the server refused the handshake: " + alert.Error()
	}
	return ""
}

// unquoted returns an error without the text that it quotes. The other side sent that
// text instead of a response. It may have any length, and may be a payload with its
// tokens, even that of an earlier delivery on the same connection.
func unquoted(err error) error {
	text := err.Error()
	if i := strings.IndexAny(text, `":`); i >= 0 {
		return errors.New(strings.TrimRight(text[:i], " "))
	}
	return err
}
