package event

// scanner walks JSON without decoding it. On malformed input it moves to the end, so
// that a caller sees missing members and never a panic.
type scanner struct {
	b []byte
	i int
}

// object calls member for every member of the object at the cursor; member
// must consume the value. Any other value is skipped.
func (s *scanner) object(member func(key []byte)) {
	if s.space() != '{' {
		s.skip()
		return
	}
	s.i++
	for {
		switch s.space() {
		case '"':
			key := s.str()
			if s.space() != ':' {
				s.i = len(s.b)
				return
			}
			s.i++
			member(key)
		case ',':
			s.i++
		case '}':
			s.i++
			return
		default:
			s.i = len(s.b)
			return
		}
	}
}

// idOf returns the id member of the object at the cursor.
func (s *scanner) idOf() (id Snowflake) {
	s.object(func(key []byte) {
		if string(key) == "id" {
			id = s.snowflake()
		} else {
			s.skip()
		}
	})
	return id
}

// snowflake reads the id at the cursor: a string, or a number, which Discord sends
// if it was given a malformed id (Discord: ID Serialization).
func (s *scanner) snowflake() Snowflake {
	if s.space() == '"' {
		return snowflakeOf(s.str())
	}
	start := s.i
	s.skip()
	return snowflakeOf(s.b[start:s.i])
}

func snowflakeOf(digits []byte) Snowflake {
	if len(digits) == 0 || len(digits) > 19 {
		return 0
	}
	var n uint64
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0
		}
		n = n*10 + uint64(c-'0')
	}
	if n > 1<<63-1 {
		return 0
	}
	return Snowflake(n)
}

// space moves to the next byte that is not white space and returns it, or 0
// at the end.
func (s *scanner) space() byte {
	for ; s.i < len(s.b); s.i++ {
		if c := s.b[s.i]; c != ' ' && c != '\t' && c != '\n' && c != '\r' {
			return c
		}
	}
	return 0
}

// str returns the contents of the string at the cursor, without decoding escapes,
// and moves past the string.
func (s *scanner) str() []byte {
	s.i++
	start := s.i
	for s.i < len(s.b) {
		if s.i = unplain(s.b, s.i); s.i == len(s.b) {
			break
		}
		switch s.b[s.i] {
		case '\\':
			s.i += 2
		case '"':
			s.i++
			return s.b[start : s.i-1]
		default:
			s.i++
		}
	}
	s.i = len(s.b)
	return nil
}

// skip moves past the value at the cursor.
func (s *scanner) skip() {
	switch s.space() {
	case '"':
		s.str()
		return
	case '{', '[':
	default:
		for s.i < len(s.b) {
			switch s.b[s.i] {
			case ',', '}', ']', ' ', '\t', '\n', '\r':
				return
			}
			s.i++
		}
		return
	}
	for depth := 0; s.i < len(s.b); {
		switch s.b[s.i] {
		case '"':
			s.str()
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		s.i++
		if depth == 0 {
			return
		}
	}
}
