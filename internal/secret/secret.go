// Package secret holds values that nobody may read: tokens, API keys, signing
// secrets. A Value prints, logs and marshals as [redacted]. Only Reveal returns the
// secret, so a search for that name finds every place that uses one. Keys encrypts
// values for storage.
package secret

import "log/slog"

const redacted = "[redacted]"

// Value is a secret. The zero value is the empty secret, which also prints as
// [redacted].
type Value struct{ s string }

// New wraps s.
func New(s string) Value { return Value{s} }

// Reveal returns the secret itself. Do not log it.
func (v Value) Reveal() string { return v.s }

// Empty reports whether there is no secret.
func (v Value) Empty() bool { return v.s == "" }

// String implements fmt.Stringer.
func (Value) String() string { return redacted }

// GoString keeps %#v from printing the field.
func (Value) GoString() string { return redacted }

// LogValue implements slog.LogValuer.
func (Value) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText keeps encoders from printing the field.
func (Value) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UnmarshalText reads configuration straight into a Value.
func (v *Value) UnmarshalText(b []byte) error {
	v.s = string(b)
	return nil
}
