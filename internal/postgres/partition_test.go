package postgres

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestPartitionInUse: a backup that reads an old partition keeps neither the start nor the
// other partitions from going on.
func TestPartitionInUse(t *testing.T) {
	t.Parallel()
	pool, err := Open(t.Context(), start(t, dataDir(t)).URL(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if err := Migrate(t.Context(), pool, quiet); err != nil {
		t.Fatal(err)
	}
	var logged strings.Builder
	p := Partitions{
		Pool: pool, Logger: slog.New(slog.NewTextHandler(&logged, nil)), Table: "attempts", Retention: time.Hour,
		Bound: func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	}
	now := time.Now()
	ages := []time.Duration{24 * time.Hour, 36 * time.Hour, 48 * time.Hour}
	name := func(age time.Duration) string {
		return "attempts_" + now.Add(-age).UTC().Truncate(6*time.Hour).Format("20060102t15")
	}
	for _, age := range ages {
		if err := p.Ensure(t.Context(), now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	// A backup locks all partitions when it begins; a psql that was left open, one.
	for _, tt := range []struct {
		read string
		left []time.Duration
	}{{"attempts", ages}, {"ONLY " + name(ages[1]), ages[1:2]}, {"", nil}} {
		logged.Reset()
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if tt.read != "" {
			if _, err := tx.Exec(t.Context(), `LOCK TABLE `+tt.read+` IN ACCESS SHARE MODE`); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Maintain(t.Context(), now); err != nil {
			t.Errorf("while %q is read: %v", tt.read, err)
		}
		for _, age := range ages {
			var there bool
			if err := tx.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_class WHERE relname = $1)`, name(age)).Scan(&there); err != nil {
				t.Fatal(err)
			}
			if there != slices.Contains(tt.left, age) {
				t.Errorf("while %q is read: the partition of %v ago is there: %v", tt.read, age, there)
			}
		}
		if strings.Contains(logged.String(), "could not drop a partition") != (tt.left != nil) {
			t.Errorf("while %q is read, it is logged: %s", tt.read, &logged)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
