// Package api holds the contract: openapi.yaml describes the API's calls and the
// bodies sent to callbacks. The server's types are generated from it.
package api

import (
	"bytes"
	_ "embed"
)

//go:generate go run ./gen tables
//go:generate go run ./gen documents

//go:embed openapi.yaml
var document []byte

// JSON is openapi.yaml as JSON, as the server serves it. It is generated
// beforehand, because parsing that much YAML would take most of the start.
//
//go:embed openapi.json
var JSON []byte

// Mark is the line of openapi.yaml after which everything is generated: the
// models and webhooks of events.
const Mark = "    # Generated from here on by api/gen from models.txt and the catalog: change those.\n"

// Calls returns openapi.yaml without the bodies sent to callbacks. The server
// routes and validates requests by it.
func Calls() []byte {
	calls, _, _ := bytes.Cut(document, []byte(Mark))
	return calls
}
