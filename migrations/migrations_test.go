package migrations_test

import (
	"io/fs"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/gatehook/gatehook/migrations"
)

// rulesFrom is the first migration to which the rules apply: earlier ones are released.
const rulesFrom = 25

// TestRules checks that a migration holds up no server that runs meanwhile (see
// CONTRIBUTING): servers are upgraded one after the other.
func TestRules(t *testing.T) {
	t.Parallel()
	files, err := fs.Glob(migrations.FS, "*.sql")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	checked := 0
	for _, name := range files {
		digits, _, _ := strings.Cut(name, "_")
		n, err := strconv.Atoi(digits)
		if err != nil {
			t.Errorf("%s: no number: %v", name, err)
		}
		if n < rulesFrom {
			continue
		}
		text, err := migrations.FS.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		checked++
		for _, broken := range broken(string(text)) {
			t.Errorf("%s: %s", name, broken)
		}
	}
	if checked == 0 {
		t.Error("no migration was checked")
	}
}

var (
	// body is that of a function, which the migration does not run.
	body        = regexp.MustCompile(`(?s)\$\$.*?\$\$`)
	comment     = regexp.MustCompile(`(?m)--.*$`)
	createTable = regexp.MustCompile(`(?i)create table (?:if not exists )?(\w+)`)
	createIndex = regexp.MustCompile(`(?is)create (?:unique )?index (concurrently )?(?:if not exists )?(\w+) on (only )?(\w+)`)
	forbidden   = []struct {
		pattern *regexp.Regexp
		why     string
	}{
		{regexp.MustCompile(`(?i)alter column \w+ (?:set data )?type`), "changes the type of a column, which rewrites the table: add a column"},
		{regexp.MustCompile(`(?i)alter column \w+ set not null`), "SET NOT NULL reads the whole table under a lock: add a CHECK that is NOT VALID, and validate it in a later migration"},
		{regexp.MustCompile(`(?i)add column [^;,]*default [^;,]*(?:random|clock_timestamp|nextval)`), "a default that differs by row rewrites the table"},
		{regexp.MustCompile(`(?i)(?:drop|rename) column|rename to|drop table`), "servers of the release before still use it: drop it one release later, and raise oldest_build"},
		{regexp.MustCompile(`(?i)\block table\b|\bcluster\b|\bvacuum full\b|\breindex\b`), "locks the table"},
	}
)

// broken returns which rules a migration breaks.
func broken(text string) (list []string) {
	alone := strings.Contains(text, "-- +goose NO TRANSACTION")
	up, _, _ := strings.Cut(text, "-- +goose Down")
	up = body.ReplaceAllString(comment.ReplaceAllString(up, ""), "")
	raises := strings.Contains(up, "oldest_build")
	made := make(map[string]bool)
	for _, m := range createTable.FindAllStringSubmatch(up, -1) {
		made[strings.ToLower(m[1])] = true
	}
	for _, m := range createIndex.FindAllStringSubmatch(up, -1) {
		concurrently, index, only, table := m[1] != "", m[2], m[3] != "", strings.ToLower(m[4])
		switch {
		case made[table] || only:
		case !concurrently:
			list = append(list, "CREATE INDEX "+index+" blocks writers: build it CONCURRENTLY, or ON ONLY a partitioned table")
		case !alone:
			list = append(list, "an index is built CONCURRENTLY only outside of a transaction: -- +goose NO TRANSACTION")
		case !regexp.MustCompile(`(?i)drop index concurrently if exists ` + index).MatchString(up):
			list = append(list, "a build that was interrupted leaves an invalid index: DROP INDEX CONCURRENTLY IF EXISTS "+index+" first")
		}
	}
	for _, f := range forbidden {
		if lifted := raises && strings.HasPrefix(f.why, "servers of the release before"); f.pattern.MatchString(up) && !lifted {
			list = append(list, f.why)
		}
	}
	if constraint := regexp.MustCompile(`(?is)add constraint [^;]*`).FindString(up); constraint != "" && !strings.Contains(strings.ToLower(constraint), "not valid") && !strings.Contains(strings.ToLower(constraint), "using index") {
		list = append(list, "ADD CONSTRAINT reads the whole table under a lock: make it NOT VALID, and validate it in a later migration")
	}
	return list
}

// TestRulesAreChecked checks that each rule can be broken.
func TestRulesAreChecked(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text string
		want int
	}{
		{"CREATE TABLE a (id int); CREATE INDEX a_id ON a (id);", 0},
		{"ALTER TABLE a ADD COLUMN b int NOT NULL DEFAULT 0;", 0},
		{"CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN DROP TABLE a; END $$;", 0},
		{"CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN END $$; DROP TABLE a; SELECT $$a$$;", 1},
		{"CREATE INDEX a_id ON a (id);", 1},
		{"CREATE UNIQUE INDEX a_id ON a (id);", 1},
		{"CREATE INDEX a_id ON ONLY a (id);", 0},
		{"CREATE INDEX CONCURRENTLY a_id ON a (id);", 1},
		{"-- +goose NO TRANSACTION\nCREATE INDEX CONCURRENTLY a_id ON a (id);", 1},
		{"-- +goose NO TRANSACTION\nDROP INDEX CONCURRENTLY IF EXISTS a_id; CREATE INDEX CONCURRENTLY a_id ON a (id);", 0},
		{"-- CREATE INDEX a_id ON a (id);", 0},
		{"ALTER TABLE a ALTER COLUMN b TYPE bigint;", 1},
		{"ALTER TABLE a ALTER COLUMN b SET NOT NULL;", 1},
		{"ALTER TABLE a ADD COLUMN b uuid DEFAULT gen_random_uuid();", 1},
		{"ALTER TABLE a DROP COLUMN b;", 1},
		{"ALTER TABLE a DROP COLUMN b; UPDATE schema_compatibility SET oldest_build = 30;", 0},
		{"DROP TABLE a;\n-- +goose Down\nCREATE TABLE a ();", 1},
		{"ALTER TABLE a ADD CONSTRAINT c CHECK (b > 0);", 1},
		{"ALTER TABLE a ADD CONSTRAINT c CHECK (b > 0) NOT VALID;", 0},
	} {
		if got := broken(tt.text); len(got) != tt.want {
			t.Errorf("%s: %v, want %d", tt.text, got, tt.want)
		}
	}
}
