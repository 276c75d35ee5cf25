// Package api holds the contract: openapi.yaml is what is served and what the
// server's types are generated from.
package api

import _ "embed"

// Document is openapi.yaml.
//
//go:embed openapi.yaml
var Document []byte
