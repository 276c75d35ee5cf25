// Package migrations holds the schema as SQL files, applied in order of their
// numbers by internal/postgres.
package migrations

import "embed"

// FS has every migration.
//
//go:embed *.sql
var FS embed.FS
