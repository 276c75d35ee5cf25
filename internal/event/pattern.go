package event

import (
	"fmt"
	"strings"
)

// Pattern is which events a listener registered for: those of one name, or those
// whose names have a prefix; in their model or in their raw form.
type Pattern struct {
	// Raw: the listener wants the payload as Discord sent it.
	Raw bool
	// Prefix: Name is the prefix of the names.
	Prefix bool
	// Name has neither RAW_ nor the asterisk.
	Name string
}

// ParsePattern reads a name or pattern in upper case: "GUILD_BAN_ADD",
// "RAW_GUILD_BAN_ADD", "*", "RAW_*", "GUILD_*", "RAW_GUILD_*". The name need not
// be known.
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

// Matches reports whether the pattern matches a name (without RAW_).
func (p Pattern) Matches(name string) bool {
	if p.Prefix {
		return strings.HasPrefix(name, p.Name)
	}
	return name == p.Name
}

// Known reports whether the pattern matches an event of the catalog.
func (p Pattern) Known() bool {
	for _, t := range catalog {
		if p.Matches(t.Name) {
			return true
		}
	}
	return false
}

// Needs returns the intents that make all matching events come.
func (p Pattern) Needs() (needs Intents) {
	for _, t := range catalog {
		if p.Matches(t.Name) {
			needs |= t.Needs()
		}
	}
	return needs
}
