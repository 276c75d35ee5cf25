package event

import (
	"fmt"
	"strings"
)

// Pattern says which events a listener registered for: those with one name, or all
// whose names have a prefix; parsed or raw.
type Pattern struct {
	// Raw means that the listener wants the payload as Discord sent it.
	Raw bool
	// Prefix means that Name is a prefix of the events' names.
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
	if !ofNameBytes(p.Name) {
		return p, fmt.Errorf("%q is not an event name: names consist of A-Z, 0-9 and _; a pattern ends with one *", s)
	}
	return p, nil
}

// maxName is the length of the longest name, in bytes. Discord's have up to 40.
const maxName = 100

// IsName reports whether t is an event's name: 1 to 100 of A-Z, 0-9 and _. It may
// go into a header, a log or a label then.
func IsName(t []byte) bool { return len(t) > 0 && len(t) <= maxName && ofNameBytes(t) }

func ofNameBytes[T string | []byte](s T) bool {
	for i := range len(s) {
		if c := s[i]; c != '_' && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
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

// Needs returns the intents with which Discord sends all matching events.
func (p Pattern) Needs() (needs Intents) {
	for _, t := range catalog {
		if p.Matches(t.Name) {
			needs |= t.Needs()
		}
	}
	return needs
}
