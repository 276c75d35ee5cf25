package event

import (
	"bytes"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxDepth limits the nesting of a payload. Discord's payloads reach about 20.
const maxDepth = 100

// ParseError says why a payload can't be converted to the model of its event.
type ParseError struct {
	// Path is the place of the problem, such as members[3].user.id; "" for the whole
	// payload.
	Path string
	// Problem completes a sentence that begins with the path: "is missing".
	Problem string
}

// Error implements error. It shows no values of the payload.
func (e *ParseError) Error() string {
	if e.Path == "" {
		return "the payload " + e.Problem
	}
	return e.Path + " " + e.Problem
}

// within prefixes the path with a field or an element.
func (e *ParseError) within(name string) *ParseError {
	switch {
	case e.Path == "":
		e.Path = name
	case strings.HasPrefix(e.Path, "["):
		e.Path = name + e.Path
	default:
		e.Path = name + "." + e.Path
	}
	return e
}

// Parse appends the model of a payload to dst, as api/openapi.yaml describes it for
// the event's name (without RAW_). It adds the fields that Discord left out as null,
// [], {} or false, after the others, and turns ids into strings. Everything else
// keeps its bytes and its order: unknown fields, new values of known fields, white
// space. Parsing a model returns the same model. The payload of an event without a
// model is appended unchanged. A payload that is missing or null counts as {}. Bytes
// that are not UTF-8 become U+FFFD: many receivers could not read the model with them
// (RFC 8259, section 8.1).
//
// The error is a *ParseError: a field without which the model is useless is missing
// or malformed, or the payload is not a JSON object. dst is then returned unchanged.
func Parse(dst []byte, name string, data []byte) ([]byte, error) {
	if !utf8.Valid(data) {
		data = bytes.ToValidUTF8(data, []byte("\uFFFD"))
	}
	t, _ := Lookup(name)
	m := findModel(t.Model)
	if m == nil {
		return append(dst, data...), nil
	}
	p := parser{walker: walker{in: data}, dst: dst}
	if p.space(); p.i == len(data) || string(bytes.TrimSpace(data)) == "null" {
		p = parser{walker: walker{in: []byte("{}")}, dst: dst}
	}
	if p.peek() != '{' {
		return dst, &ParseError{Problem: "is not an object"}
	}
	if err := p.model(m, 1); err != nil {
		return dst, err
	}
	if p.space(); p.i != len(p.in) {
		return dst, p.broken()
	}
	p.flush(p.i)
	return p.dst, nil
}

// parser copies a payload in long pieces, and inserts the model's changes between
// them.
type parser struct {
	walker
	dst []byte
	// from is the start of the piece that is not copied yet.
	from int
}

// flush copies the piece that ends at to.
func (p *parser) flush(to int) {
	p.dst = append(p.dst, p.in[p.from:to]...)
	p.from = to
}

// replace writes text in place of the bytes from start to the cursor.
func (p *parser) replace(start int, text string) {
	p.flush(start)
	p.dst = append(p.dst, text...)
	p.from = p.i
}

// model copies the object at the cursor.
func (p *parser) model(m *model, depth int) *ParseError {
	var (
		seen set
		by   []byte // the value that selects the variant
	)
	more, err := p.open('}', depth)
	empty := !more
	for ; more; more, err = p.more('}') {
		name, err := p.key()
		if err != nil {
			return err
		}
		i := m.find(name)
		if i < 0 {
			if err := p.skip(depth); err != nil {
				return err
			}
			continue
		}
		seen.add(i)
		start := p.i
		if err := p.field(&m.fields[i], depth); err != nil {
			return err.within(m.fields[i].name)
		}
		if i == m.by {
			by = p.in[start:p.i]
		}
	}
	if err != nil {
		return err
	}
	return p.complete(m, m.variant(by), seen, empty)
}

// complete adds the missing fields to the object that ends at the cursor. empty
// means that the object has no fields.
func (p *parser) complete(m *model, v *variant, seen set, empty bool) *ParseError {
	missing := v.fields.less(seen)
	if missing.empty() {
		return nil
	}
	if useless := v.strict.less(seen); !useless.empty() {
		return &ParseError{Path: m.fields[useless.first()].name, Problem: "is missing"}
	}
	p.flush(p.i - 1)
	for word, left := range missing {
		for ; left != 0; left &= left - 1 {
			if !empty {
				p.dst = append(p.dst, ',')
			}
			empty = false
			p.dst = append(p.dst, m.fields[word<<6+bits.TrailingZeros64(left)].absent...)
		}
	}
	return nil
}

// first returns the lowest number in a set that is not empty.
func (s set) first() int {
	if s[0] != 0 {
		return bits.TrailingZeros64(s[0])
	}
	return 64 + bits.TrailingZeros64(s[1])
}

// field copies the value at the cursor, converted as the field requires. A value of
// the wrong type is copied unchanged.
func (p *parser) field(f *field, depth int) *ParseError {
	switch c := p.peek(); {
	case c == 'n':
		return p.null(f)
	case f.list && c == '[':
		n := 0
		more, err := p.open(']', depth+1)
		for ; more; more, err = p.more(']') {
			if err := p.value(f, depth+1, false); err != nil {
				return err.within("[" + strconv.Itoa(n) + "]")
			}
			n++
		}
		return err
	case f.object && c == '{':
		more, err := p.open('}', depth+1)
		for ; more; more, err = p.more('}') {
			name, err := p.key()
			if err != nil {
				return err
			}
			if err := p.value(f, depth+1, false); err != nil {
				return err.within(string(name[:min(len(name), 50)]))
			}
		}
		return err
	case f.list || f.object:
		return p.skip(depth)
	default:
		return p.value(f, depth, f.strict)
	}
}

// null reads a null, and replaces it if the field can't be null.
func (p *parser) null(f *field) *ParseError {
	start := p.i
	if err := p.literal("null"); err != nil {
		return err
	}
	switch {
	case f.null:
	case f.strict:
		return &ParseError{Problem: "is null"}
	case f.list:
		p.replace(start, "[]")
	case f.object:
		p.replace(start, "{}")
	case f.kind == kindBool:
		p.replace(start, "false")
	case f.kind == kindFlag:
		p.replace(start, "true")
	}
	return nil
}

// value copies one value of the field's kind.
func (p *parser) value(f *field, depth int, strict bool) *ParseError {
	switch {
	case f.kind == kindID:
		return p.id(depth, strict)
	case f.kind == kindModel && p.peek() == '{':
		return p.model(&models[f.of], depth+1)
	case f.kind == kindModel && strict:
		return &ParseError{Problem: "is not an object"}
	default:
		return p.skip(depth)
	}
}

// id copies a snowflake, and quotes it if it is a number. Discord sends a number if
// it was given a malformed id (Discord: ID Serialization), and for its own sounds.
func (p *parser) id(depth int, strict bool) *ParseError {
	start, quoted := p.i, p.peek() == '"'
	if err := p.skip(depth); err != nil {
		return err
	}
	digits := p.in[start:p.i]
	if quoted {
		digits = digits[1 : len(digits)-1]
	}
	switch ok := isID(digits); {
	case !ok && strict:
		return &ParseError{Problem: "is not a Discord id"}
	case ok && !quoted:
		p.flush(start)
		p.dst = append(p.dst, '"')
		p.flush(p.i)
		p.dst = append(p.dst, '"')
	}
	return nil
}

func isID(b []byte) bool {
	if len(b) == 0 || len(b) > 20 {
		return false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}
