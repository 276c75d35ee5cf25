package main

import (
	"fmt"
	"slices"
	"strings"
)

// A model is an object, or a union of objects.
type model struct {
	name, about string
	fields      []field
	// by and cases describe a union: by is the field that selects the variant.
	by    string
	cases []variant
}

type field struct {
	name, about string
	of          string // id, str, …, or the name of a model
	list        bool   // an array of that type
	object      bool   // an object with values of that type
	null        bool   // the field can be null
	strict      bool   // the field can't be left out
}

type variant struct {
	values []string // as JSON spells them; none for "any other"
	model  string
}

var scalars = []string{"id", "str", "time", "int", "num", "bool", "flag", "any"}

// readModels reads models.txt, whose head explains its syntax. It returns the
// models by name, with their includes resolved.
func readModels(text string) (map[string]*model, error) {
	models := make(map[string]*model)
	var m *model
	for n, line := range strings.Split(text, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		var err error
		switch {
		case !strings.HasPrefix(line, " "):
			m, err = readHead(words)
			if err == nil && models[m.name] != nil {
				err = fmt.Errorf("%s is defined twice", m.name)
			}
			if err == nil {
				models[m.name] = m
			}
		case m == nil:
			err = fmt.Errorf("%q belongs to no model", line)
		case m.by != "":
			v := variant{values: words[:len(words)-1], model: words[len(words)-1]}
			if len(v.values) == 1 && v.values[0] == "*" {
				v.values = nil
			}
			m.cases = append(m.cases, v)
		case words[0] == "include":
			from := models[words[1]]
			if from == nil {
				return nil, fmt.Errorf("line %d: %s includes %s, which must be defined before it", n+1, m.name, words[1])
			}
			m.fields = append(m.fields, from.fields...)
		default:
			err = m.readField(words)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
	}
	return models, check(models)
}

func readHead(words []string) (*model, error) {
	switch {
	case len(words) > 2 && words[0] == "model":
		return &model{name: words[1], about: strings.Join(words[2:], " ")}, nil
	case len(words) > 4 && words[0] == "union" && words[2] == "by":
		return &model{name: words[1], by: words[3], about: strings.Join(words[4:], " ")}, nil
	default:
		return nil, fmt.Errorf("%q starts neither a model nor a union", strings.Join(words, " "))
	}
}

// readField reads FIELD TYPE description. It replaces a field of the same name
// that an include added.
func (m *model) readField(words []string) error {
	if len(words) < 3 {
		return fmt.Errorf("%q lacks a type or description", strings.Join(words, " "))
	}
	f := field{name: words[0], about: strings.Join(words[2:], " ")}
	t := words[1]
	t, f.list = strings.CutPrefix(t, "[]")
	t, f.object = strings.CutPrefix(t, "{}")
	t, f.null = strings.CutSuffix(t, "?")
	f.of, f.strict = strings.CutSuffix(t, "!")
	if f.of == "id" && !f.null && !f.list && !f.object {
		f.strict = true
	}
	if i := slices.IndexFunc(m.fields, func(g field) bool { return g.name == f.name }); i >= 0 {
		m.fields[i] = f
		return nil
	}
	m.fields = append(m.fields, f)
	return nil
}

// check reports references to models that do not exist, and gives unions the
// fields of their variants.
func check(models map[string]*model) error {
	for _, m := range models {
		for i, v := range m.cases {
			if (v.values == nil) != (i == len(m.cases)-1) {
				return fmt.Errorf("%s: the last variant, and only that, must be for any other value (*)", m.name)
			}
			if models[v.model] == nil || models[v.model].by != "" {
				return fmt.Errorf("%s: %s is not a model", m.name, v.model)
			}
			if err := m.merge(models[v.model]); err != nil {
				return err
			}
		}
		if len(m.fields) == 0 || len(m.fields) > 128 {
			return fmt.Errorf("%s has %d fields: a model can have 1 to 128", m.name, len(m.fields))
		}
		for _, f := range m.fields {
			if !slices.Contains(scalars, f.of) && models[f.of] == nil {
				return fmt.Errorf("%s.%s: %s is not a type", m.name, f.name, f.of)
			}
		}
	}
	return nil
}

// merge adds the fields of a variant to those of the union. Variants must agree on
// the fields that they share: a field is read before its variant is known.
func (m *model) merge(v *model) error {
	for _, f := range v.fields {
		i := slices.IndexFunc(m.fields, func(g field) bool { return g.name == f.name })
		if i < 0 {
			m.fields = append(m.fields, f)
			continue
		}
		g := m.fields[i]
		if g.of != f.of || g.list != f.list || g.object != f.object || g.strict != f.strict || g.null != f.null {
			return fmt.Errorf("%s: %s has another type in %s than in the other variants", m.name, f.name, v.name)
		}
	}
	return nil
}

func sorted(models map[string]*model) []*model {
	out := make([]*model, 0, len(models))
	for _, m := range models {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *model) int { return strings.Compare(a.name, b.name) })
	return out
}
