package event

import (
	"fmt"
	"strings"
)

// Pattern is what a listener registered for: the name of one event, or all
// whose names begin with something; the events themselves or their raw form.
type Pattern struct {
	// Raw: the payload is wanted as Discord sent it.
	Raw bool
	// Prefix: Name is only the beginning of the names.
	Prefix bool
	// Name is without RAW_ and without the asterisk.
	Name string
}

// ParsePattern reads a name or pattern in upper case: "GUILD_BAN_ADD",
// "RAW_GUILD_BAN_ADD", "*", "RAW_*", "GUILD_*", "RAW_GUILD_*". It does not ask
// whether the name is known.
func ParsePattern(s string) (Pattern, error) {
	var p Pattern
	p.Name, p.Raw = strings.CutPrefix(s, RawPrefix)
	p.Name, p.Prefix = strings.CutSuffix(p.Name, "*")
	if p.Name == "" && !p.Prefix {
		return p, fmt.Errorf("%q names no event", s)
	}
	for _, c := range p.Name {
		if c != '_' && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return p, fmt.Errorf("%q is no event name: names are of A-Z, 0-9 and _, with one * at the end for a pattern", s)
		}
	}
	return p, nil
}

// Matches tells whether events of a name (without RAW_) are wanted.
func (p Pattern) Matches(name string) bool {
	if p.Prefix {
		return strings.HasPrefix(name, p.Name)
	}
	return name == p.Name
}

// Known tells whether any event of the catalog is wanted.
func (p Pattern) Known() bool {
	for _, t := range catalog {
		if p.Matches(t.Name) {
			return true
		}
	}
	return false
}

// Needs are the intents with which all wanted events come.
func (p Pattern) Needs() (needs Intents) {
	for _, t := range catalog {
		if p.Matches(t.Name) {
			needs |= t.Needs()
		}
	}
	return needs
}
