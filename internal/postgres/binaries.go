package postgres

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// minMajor is the oldest PostgreSQL that the schema works with.
const minMajor = 14

// errNoBinaries means that no PostgreSQL is installed and none can be fetched.
var errNoBinaries = fmt.Errorf("no PostgreSQL was found and none could be fetched: install version %d or newer "+
	"(Debian, Ubuntu: apt-get install postgresql; macOS: brew install postgresql@17) or set DATABASE_URL", minMajor)

// binaries is one installation.
type binaries struct {
	dir   string
	major int
}

func (b binaries) path(name string) string { return filepath.Join(b.dir, name) }

// installed lists the places where packages of operating systems put the binaries.
var installed = []string{
	"/usr/lib/postgresql/*/bin",         // Debian, Ubuntu
	"/usr/pgsql-*/bin",                  // PostgreSQL's packages for Red Hat
	"/usr/libexec/postgresql*",          // Alpine
	"/opt/homebrew/opt/postgresql*/bin", // Homebrew
	"/usr/local/opt/postgresql*/bin",    // Homebrew on Intel
	"/Applications/Postgres.app/Contents/Versions/*/bin",
	"/usr/local/pgsql/bin",
	"/usr/bin",
}

// findBinaries returns the installations on this machine, the newest first.
func findBinaries(ctx context.Context) []binaries {
	var dirs []string
	if p, err := exec.LookPath("postgres"); err == nil {
		// The program in PATH may be a link; the installation's other programs
		// are beside its target.
		if target, err := filepath.EvalSymlinks(p); err == nil {
			dirs = append(dirs, filepath.Dir(target))
		}
		dirs = append(dirs, filepath.Dir(p))
	}
	for _, pattern := range installed {
		found, err := filepath.Glob(pattern)
		if err == nil {
			dirs = append(dirs, found...)
		}
	}
	var out []binaries
	seen := map[string]bool{}
	for _, dir := range dirs {
		if b, ok := inspect(ctx, dir); ok && !seen[dir] {
			seen[dir] = true
			out = append(out, b)
		}
	}
	slices.SortStableFunc(out, func(a, b binaries) int { return b.major - a.major })
	return out
}

var versionPattern = regexp.MustCompile(`PostgreSQL\) (\d+)`)

func inspect(ctx context.Context, dir string) (binaries, bool) {
	b := binaries{dir: dir}
	if _, err := os.Stat(b.path("initdb")); err != nil {
		return b, false
	}
	out, err := exec.CommandContext(ctx, b.path("postgres"), "--version").Output()
	if err != nil {
		return b, false
	}
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return b, false
	}
	b.major, err = strconv.Atoi(string(m[1]))
	return b, err == nil && b.major >= minMajor
}

// chooseBinaries returns the installation for a cluster: one of the cluster's major
// version, or the newest if there is no cluster yet (major is 0).
func chooseBinaries(found []binaries, major int) (binaries, error) {
	for _, b := range found {
		if major == 0 || b.major == major {
			return b, nil
		}
	}
	if len(found) == 0 {
		return binaries{}, errNoBinaries
	}
	return binaries{}, fmt.Errorf("the database in the data directory was made by PostgreSQL %d, but PostgreSQL %d is installed: "+
		"install PostgreSQL %d, or move the directory away to start empty", major, found[0].major, major)
}

// makeReadable lets the unprivileged user run the programs that root has unpacked.
func makeReadable(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Perm() | 0o044
		if d.IsDir() || mode&0o100 != 0 {
			mode |= 0o011
		}
		return os.Chmod(path, mode)
	})
}
