package event

import (
	"cmp"
	"slices"
)

// model is how an object is read that has a schema of api/openapi.yaml, or one of
// a union of them. The tables in model.gen.go are made from the same source as
// the schemas.
type model struct {
	name   string
	fields []field
	// index has the numbers of the fields, sorted by the lengths of their names;
	// names of length n begin at starts[n].
	index, starts string
	// by is the number of the field that tells which variant an object is; -1
	// if there is only one.
	by       int
	variants []variant
}

type field struct {
	name string
	// absent is the text that stands for the field if Discord left it out.
	absent string
	kind   kind
	// of is the number of the model, for kindModel.
	of int
	// list, object: it is an array, or an object, with values of the kind.
	list, object bool
	// null: it can be null.
	null bool
	// strict: without it the object is useless.
	strict bool
}

// kind is what a value needs besides being copied.
type kind uint8

const (
	kindAny   kind = iota // nothing
	kindID                // a number becomes a string
	kindBool              // null becomes false
	kindFlag              // null becomes true (Discord: Role Tags Structure)
	kindModel             // it is read by a model of its own
)

// set is a set of a model's fields, by their numbers.
type set [2]uint64

func (s *set) add(i int)     { s[i>>6] |= 1 << (i & 63) }
func (s set) less(t set) set { return set{s[0] &^ t[0], s[1] &^ t[1]} }
func (s set) empty() bool    { return s[0]|s[1] == 0 }

// variant is the fields that an object must have.
type variant struct {
	// values of the field that tells the variant. The last variant has none: it
	// is for any other value.
	values         []string
	fields, strict set
}

// findModel returns the model of a name, or nil.
func findModel(name string) *model {
	i, ok := slices.BinarySearchFunc(models, name, func(m model, name string) int { return cmp.Compare(m.name, name) })
	if !ok {
		return nil
	}
	return &models[i]
}

// find returns the number of a field, or -1.
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

// variant returns the variant of an object in which the field that tells it has
// this value.
func (m *model) variant(value []byte) *variant {
	last := len(m.variants) - 1
	for i := range m.variants[:last] {
		if v := &m.variants[i]; slices.Contains(v.values, string(value)) {
			return v
		}
	}
	return &m.variants[last]
}
