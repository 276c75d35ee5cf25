package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// owner is the user that PostgreSQL runs as: our own user, or an unprivileged one if
// we are root, because PostgreSQL refuses to run as root.
type owner struct {
	uid, gid uint32
	other    bool // not our own user
}

// unprivileged lists the users that run PostgreSQL if we are root. The first one that
// exists is used.
var unprivileged = []string{"postgres", "nobody"}

func findOwner() (owner, error) {
	if os.Geteuid() != 0 {
		return owner{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}, nil
	}
	for _, name := range unprivileged {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil && uid != 0 {
			return owner{uid: uint32(uid), gid: uint32(gid), other: true}, nil
		}
	}
	return owner{}, fmt.Errorf("PostgreSQL does not run as root and there is no user %s to run it: "+
		"run the server as an ordinary user, or set DATABASE_URL", strings.Join(unprivileged, " or "))
}

// command runs a program as the owner.
func (o owner) command(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = "/" // the owner may not be able to enter our directory
	cmd.Env = environment(o.other)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if o.other {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: o.uid, Gid: o.gid}
	}
	// A terminal's Ctrl-C must not reach the child: we end it after the drain.
	cmd.SysProcAttr.Setpgid = true
	return cmd
}

// environment returns the environment of PostgreSQL's programs. They get nothing of ours
// that they don't need: every process of their user can read it, and ours has the bot's
// token and the keys.
func environment(otherUser bool) []string {
	env := []string{"LC_ALL=C", "TZ=UTC"}
	for _, name := range []string{"PATH", "LD_LIBRARY_PATH", "TMPDIR", "HOME"} {
		value, ok := os.LookupEnv(name)
		if name == "HOME" && otherUser {
			value, ok = "/", true
		}
		if ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// mkdir makes a directory for the owner alone.
func (o owner) mkdir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if o.other {
		return os.Chown(path, int(o.uid), int(o.gid))
	}
	return nil
}

// elsewhere holds root's clusters if the owner can't reach their data directories.
const elsewhere = "/var/lib/gatehook"

// clusterDir returns the directory of the cluster that belongs to a data directory.
// It is in the data directory, unless the owner can't reach that (a checkout in root's
// home). Then it is in elsewhere, and a file in the data directory names it.
func (o owner) clusterDir(dataDir string) (string, error) {
	here := filepath.Join(dataDir, "postgres")
	note := here + ".location"
	if b, err := os.ReadFile(note); err == nil {
		return strings.TrimSpace(string(b)), nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look for the database: %w", err)
	}
	if !o.other {
		return here, nil
	}
	if _, err := os.Stat(here); err == nil || o.canReach(filepath.Dir(dataDir)) {
		// The data directory is ours to change: we let the owner pass through it,
		// but not list it.
		if err := os.Chmod(dataDir, 0o711); err != nil {
			return "", fmt.Errorf("open the data directory to the user that runs PostgreSQL: %w", err)
		}
		return here, nil
	}
	if err := os.MkdirAll(elsewhere, 0o711); err != nil {
		return "", fmt.Errorf("make a place for the database: %w", err)
	}
	there := filepath.Join(elsewhere, shortHash(dataDir))
	if err := os.WriteFile(note, []byte(there+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("record where the database is: %w", err)
	}
	return there, nil
}

// canReach reports whether the owner may pass through a directory and all of its
// parents.
func (o owner) canReach(dir string) bool {
	for {
		info, err := os.Stat(dir)
		if err != nil {
			return false
		}
		through := info.Mode().Perm()&0o001 != 0
		if sys, ok := info.Sys().(*syscall.Stat_t); ok && !through {
			through = sys.Uid == o.uid && info.Mode().Perm()&0o100 != 0
		}
		if !through {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}

// maxSocketDir leaves room for "/.s.PGSQL.5432.lock" within the 103 bytes that
// macOS allows for a socket's path; Linux allows 107.
const maxSocketDir = 84

// socketDir creates the directory for the socket. Its path is short, however deep the
// data directory is. Only the owner and root can enter it, which keeps others away
// from the database.
func (o owner) socketDir(dataDir string) (string, error) {
	base := os.TempDir()
	if len(base) > maxSocketDir-len("/gatehook-0123456789ab") || o.other && !o.canReach(base) {
		base = "/tmp"
	}
	dir := filepath.Join(base, "gatehook-"+shortHash(dataDir))
	// A directory of that name is from an earlier run, or a trap by somebody else.
	if info, err := os.Lstat(dir); err == nil {
		sys, ok := info.Sys().(*syscall.Stat_t)
		if !info.IsDir() || !ok || sys.Uid != o.uid {
			return "", fmt.Errorf("%s is in the way: it belongs to somebody else; remove it or set TMPDIR", dir)
		}
		if err := os.RemoveAll(dir); err != nil {
			return "", fmt.Errorf("make a place for the database's socket: %w", err)
		}
	}
	if err := o.mkdir(dir); err != nil {
		return "", fmt.Errorf("make a place for the database's socket: %w", err)
	}
	return dir, nil
}

// cacheDir returns a directory for fetched binaries from which the owner can run them.
func (o owner) cacheDir() string {
	if dir, err := os.UserCacheDir(); err == nil && !o.other {
		return dir
	}
	return "/var/cache"
}
