package event

import (
	"cmp"
	"slices"
)

// model describes how to read the objects of one schema of api/openapi.yaml, or of
// one union of schemas. The tables in model.gen.go are generated from the same
// source as the schemas.
type model struct {
	name   string
	fields []field
	// index has the numbers of the fields, sorted by the lengths of their names. The
	// fields with names of length n begin at starts[n].
	index, starts string
	// by is the number of the field that selects an object's variant; -1 if there is
	// only one variant.
	by       int
	variants []variant
}

type field struct {
	name string
	// absent is the text to add for the field if Discord left it out.
	absent string
	kind   kind
	// of is the number of the model, for kindModel.
	of int
	// list and object mean that the field is an array or an object with values of
	// the kind.
	list, object bool
	// null means that the field can be null.
	null bool
	// strict means that the object is useless without the field.
	strict bool
}

// kind says how a value is changed when it is copied.
type kind uint8

const (
	kindAny   kind = iota // not at all
	kindID                // a number becomes a string
	kindBool              // null becomes false
	kindFlag              // null becomes true (Discord: Role Tags Structure)
	kindModel             // converted to its own model
)

// set is a set of a model's fields, by their numbers.
type set [2]uint64

func (s *set) add(i int)     { s[i>>6] |= 1 << (i & 63) }
func (s set) less(t set) set { return set{s[0] &^ t[0], s[1] &^ t[1]} }
func (s set) empty() bool    { return s[0]|s[1] == 0 }

// variant lists the fields that an object must have.
type variant struct {
	// values are the values of the selecting field that select this variant. The
	// last variant has none: every other value selects it.
	values         []string
	fields, strict set
}

// findModel returns the model with a name, or nil.
func findModel(name string) *model {
	i, ok := slices.BinarySearchFunc(models, name, func(m model, name string) int { return cmp.Compare(m.name, name) })
	if !ok {
		return nil
	}
	return &models[i]
}

// find returns the number of the field with a name, or -1.
func (m *model) find(name []byte) int {
	n := len(name)
	if n+1 >= len(m.starts) {
		return -1
	}
	for j := m.starts[n]; j < m.starts[n+1]; j++ {
		if i := int(m.index[j]); m.fields[i].name == string(name) {
			return i
		}
	}
	return -1
}

// variant returns the variant that a value of the selecting field selects.
func (m *model) variant(value []byte) *variant {
	last := len(m.variants) - 1
	for i := range m.variants[:last] {
		if v := &m.variants[i]; slices.Contains(v.values, string(value)) {
			return v
		}
	}
	return &m.variants[last]
}
