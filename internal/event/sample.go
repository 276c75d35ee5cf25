package event

import (
	"bytes"
	"embed"
	"encoding/json"
)

// samples holds a payload of every dispatch event, formatted for readers.
//
//go:embed samples/*.json
var samples embed.FS

// Sample returns a payload of an event as Discord sends it (`d` of the frame),
// composed from the documented fields with invented ids. docs/events.md links to
// it. It returns false for an event that Discord does not dispatch.
func Sample(name string) ([]byte, bool) {
	b, err := samples.ReadFile("samples/" + name + ".json")
	if err != nil {
		return nil, false
	}
	var out bytes.Buffer
	if json.Compact(&out, b) != nil {
		return nil, false
	}
	return out.Bytes(), true
}
