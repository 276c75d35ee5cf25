// Package api holds the contract: openapi.yaml says which calls there are and
// what is sent to callbacks. The server's types are generated from it.
package api

import (
	"bytes"
	_ "embed"
)

//go:generate go run ./gen tables
//go:generate go run ./gen documents

//go:embed openapi.yaml
var document []byte

// JSON is openapi.yaml as JSON, as it is served: made beforehand, since
// reading that much YAML takes longer than all else at the start.
//
//go:embed openapi.json
var JSON []byte

// Mark is the line of openapi.yaml behind which everything is generated: the
// models and webhooks of events.
const Mark = "    # Generated from here on by api/gen from models.txt and the catalog: change those.\n"

// Calls is openapi.yaml without what is sent to callbacks: what requests are
// routed and checked by.
func Calls() []byte {
	calls, _, _ := bytes.Cut(document, []byte(Mark))
	return calls
}
