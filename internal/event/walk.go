package event

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/bits"
)

// walker walks JSON and, like encoding/json, refuses everything that is not JSON
// (RFC 8259), so that the bytes it has passed may be copied into other JSON.
type walker struct {
	in []byte
	i  int
}

func (s *walker) broken() *ParseError {
	return &ParseError{Problem: fmt.Sprintf("is not JSON at byte %d of %d", s.i, len(s.in))}
}

// space moves to the next byte that is not white space.
func (s *walker) space() {
	for s.i < len(s.in) {
		switch s.in[s.i] {
		case ' ', '\t', '\n', '\r':
			s.i++
		default:
			return
		}
	}
}

// peek returns the byte at the cursor, or 0 at the end.
func (s *walker) peek() byte {
	if s.i < len(s.in) {
		return s.in[s.i]
	}
	return 0
}

// open moves into the object or array at the cursor, to its first key or
// element, and reports whether there is one. If there is none, it moves past the
// end.
func (s *walker) open(end byte, depth int) (bool, *ParseError) {
	if depth > maxDepth {
		return false, &ParseError{Problem: fmt.Sprintf("is nested deeper than %d", maxDepth)}
	}
	s.i++
	s.space()
	if s.peek() == end {
		s.i++
		return false, nil
	}
	return true, nil
}

// more moves from the end of a value to the next key or element, and reports whether
// there is one. If there is none, it moves past the end of the object or array.
func (s *walker) more(end byte) (bool, *ParseError) {
	s.space()
	switch s.peek() {
	case ',':
		s.i++
		s.space()
		return true, nil
	case end:
		s.i++
		return false, nil
	default:
		return false, s.broken()
	}
}

// key returns the name at the cursor and moves to its value.
func (s *walker) key() ([]byte, *ParseError) {
	start := s.i
	if s.peek() != '"' {
		return nil, s.broken()
	}
	plain, err := s.str()
	if err != nil {
		return nil, err
	}
	name := s.in[start+1 : s.i-1]
	if !plain {
		var decoded string
		if err := json.Unmarshal(s.in[start:s.i], &decoded); err != nil {
			return nil, s.broken()
		}
		name = []byte(decoded)
	}
	s.space()
	if s.peek() != ':' {
		return nil, s.broken()
	}
	s.i++
	s.space()
	return name, nil
}

// skip moves past the value at the cursor.
func (s *walker) skip(depth int) *ParseError {
	switch c := s.peek(); {
	case c == '"':
		_, err := s.str()
		return err
	case c == '-' || c >= '0' && c <= '9':
		return s.number()
	case c == 't':
		return s.literal("true")
	case c == 'f':
		return s.literal("false")
	case c == 'n':
		return s.literal("null")
	case c == '[':
		more, err := s.open(']', depth+1)
		for ; more; more, err = s.more(']') {
			if err := s.skip(depth + 1); err != nil {
				return err
			}
		}
		return err
	case c == '{':
		more, err := s.open('}', depth+1)
		for ; more; more, err = s.more('}') {
			if _, err := s.key(); err != nil {
				return err
			}
			if err := s.skip(depth + 1); err != nil {
				return err
			}
		}
		return err
	default:
		return s.broken()
	}
}

func (s *walker) literal(word string) *ParseError {
	if len(s.in)-s.i < len(word) || string(s.in[s.i:s.i+len(word)]) != word {
		return s.broken()
	}
	s.i += len(word)
	return nil
}

// str moves past the string at the cursor. plain means that the string has no
// escapes.
func (s *walker) str() (plain bool, err *ParseError) {
	plain = true
	in, i := s.in, s.i+1
	for {
		i = unplain(in, i)
		switch {
		case i < len(in) && in[i] == '"':
			s.i = i + 1
			return plain, nil
		case i < len(in) && in[i] == '\\':
			plain = false
			if n := escape(in[i:]); n > 0 {
				i += n
				continue
			}
		}
		s.i = i
		return false, s.broken()
	}
}

// unplain returns the index of the first byte, from i on, that can't stand for itself
// in a string: a quote, a backslash or a control character; len(b) if there is none.
// It checks eight bytes at a time, because most of a payload is text.
func unplain(b []byte, i int) int {
	const (
		ones = 0x0101010101010101
		tops = 0x80 * ones
	)
	for ; i+8 <= len(b); i += 8 {
		x := binary.LittleEndian.Uint64(b[i:])
		quote, backslash := x^'"'*ones, x^'\\'*ones
		// The top bit of each byte that borrowed: bytes that are zero (in x: less
		// than a space) borrow, and bytes after them may, but only the first counts.
		found := ((x-' '*ones)&^x | (quote-ones)&^quote | (backslash-ones)&^backslash) & tops
		if found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for ; i < len(b); i++ {
		if c := b[i]; c < ' ' || c == '"' || c == '\\' {
			return i
		}
	}
	return len(b)
}

// escape returns the length of the escape at the start of b; 0 if it is not valid.
func escape(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	switch b[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(b) < 6 {
			return 0
		}
		for _, c := range b[2:6] {
			if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'f') {
				return 0
			}
		}
		return 6
	default:
		return 0
	}
}

func (s *walker) number() *ParseError {
	if s.peek() == '-' {
		s.i++
	}
	switch c := s.peek(); {
	case c == '0':
		s.i++
	case !s.digits():
		return s.broken()
	}
	if s.peek() == '.' {
		s.i++
		if !s.digits() {
			return s.broken()
		}
	}
	if s.peek()|0x20 == 'e' {
		s.i++
		if c := s.peek(); c == '+' || c == '-' {
			s.i++
		}
		if !s.digits() {
			return s.broken()
		}
	}
	return nil
}

// digits moves over digits and reports whether there are any.
func (s *walker) digits() bool {
	start := s.i
	for c := s.peek(); c >= '0' && c <= '9'; c = s.peek() {
		s.i++
	}
	return s.i > start
}
