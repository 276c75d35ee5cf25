package event

import (
	"bytes"
	"encoding/json"
	"slices"
)

// redacted replaces a token.
const redacted = "[redacted]"

// minCutToken is the length in bytes from which the beginning of a token is
// redacted: a shorter one may be any word, and nobody can use it.
const minCutToken = 8

// RedactTokens replaces the payload's tokens in text with [redacted]: with a token anybody
// could answer an interaction or join a voice connection (Discord: Interactions,
// Voice Server Update). text is a callback's response, which people will read. It
// may contain a token as the payload spells it or decoded, and may end within a
// token. Tokens in any other encoding are not found. A text without tokens is
// returned unchanged.
func RedactTokens(text, data []byte) []byte {
	if len(text) == 0 {
		return text
	}
	s := scanner{b: data}
	s.object(func(key []byte) {
		if string(key) != "token" || s.space() != '"' {
			s.skip()
			return
		}
		start := s.i
		spelled := s.str()
		text = redact(text, spelled)
		var decoded string
		if json.Unmarshal(s.b[start:s.i], &decoded) == nil {
			text = redact(text, []byte(decoded))
		}
	})
	return text
}

func redact(text, token []byte) []byte {
	if len(token) == 0 {
		return text
	}
	if bytes.Contains(text, token) {
		text = bytes.ReplaceAll(text, token, []byte(redacted))
	}
	for n := min(len(token)-1, len(text)); n >= minCutToken; n-- {
		if bytes.HasSuffix(text, token[:n]) {
			return append(slices.Clone(text[:len(text)-n]), redacted...)
		}
	}
	return text
}
