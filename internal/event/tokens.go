package event

import (
	"bytes"
	"encoding/json"
	"slices"
)

// redacted stands where a token was.
const redacted = "[redacted]"

// minCutToken is how many bytes of a token's beginning count as the token: fewer
// may be any word, and open nothing.
const minCutToken = 8

// RedactTokens returns a text with [redacted] in place of the payload's own tokens,
// with which anybody could answer an interaction or join a voice connection
// (Discord: Interactions, Voice Server Update). The text is a callback's answer to
// the payload, and people will read it: it may have a token as the payload spells
// it or decoded, and may end in the middle of one. A token in any other encoding
// stays. A text without tokens is returned itself.
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
