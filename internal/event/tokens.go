package event

import (
	"bytes"
	"encoding/json"
	"slices"
)

// redacted stands where a token was.
const redacted = "[redacted]"

// cutToken is from how many bytes on the beginning of a token is one: what is
// shorter may be any word, and opens nothing.
const cutToken = 8

// RedactTokens returns a text that people will read with [redacted] in place of
// the payload's own tokens, by which anybody could answer an interaction or
// join a voice connection (Discord: Interactions, Voice Server Update). The
// text is what a callback made of the payload: it may have a token as the
// payload spells it or decoded, and may end in the middle of one. A token in
// any other encoding stays. The text comes back itself if it has none.
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
	for n := min(len(token)-1, len(text)); n >= cutToken; n-- {
		if bytes.HasSuffix(text, token[:n]) {
			return append(slices.Clone(text[:len(text)-n]), redacted...)
		}
	}
	return text
}
