package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"github.com/gatehook/gatehook/internal/filelock"
	"github.com/gatehook/gatehook/internal/journal"
	"github.com/gatehook/gatehook/internal/secret"
)

const (
	instanceFile = "instance"
	apiKeyFile   = "api-key"
)

// dataDir is the data directory. It keeps the generated API key and the instance's
// name, by which other instances recognize a restart.
type dataDir struct {
	path string
	// name of this instance; the same after a restart.
	name uuid.UUID
	lock *filelock.File // nil if the name was made for this process alone
}

// openDataDir makes the directory and locks it. If another live server has the
// lock, or the directory can't be written, it returns an error together with a
// dataDir that has a new name. Everything that an earlier server owned then becomes
// free only when that server's lease has run out.
func openDataDir(path string) (*dataDir, error) {
	d := &dataDir{path: path, name: uuid.New()}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return d, fmt.Errorf("the data directory %s can't be made: %w", path, err)
	}
	f, err := filelock.Open(filepath.Join(path, instanceFile))
	if errors.Is(err, filelock.ErrInUse) {
		return d, fmt.Errorf("another server uses the data directory %s", path)
	}
	if err != nil {
		return d, fmt.Errorf("the data directory %s can't be written: %w", path, err)
	}
	d.lock = f
	var text [36]byte
	if n, _ := f.ReadAt(text[:], 0); n == len(text) {
		if name, err := uuid.ParseBytes(text[:]); err == nil {
			d.name = name
			return d, nil
		}
	}
	if _, err := f.WriteAt([]byte(d.name.String()+"\n"), 0); err != nil {
		return d, fmt.Errorf("write %s: %w", f.Name(), err)
	}
	return d, nil
}

// home is what the other instances know of the directory.
func (d *dataDir) home() journal.Home {
	h := journal.Home{Name: d.name}
	if d.lock != nil {
		h.Directory = d.path
		if abs, err := filepath.Abs(d.path); err == nil {
			h.Directory = abs
		}
	}
	return h
}

// refused says what to do about a directory whose copy another live server uses.
func (d *dataDir) refused(err error) error {
	var other *journal.NamesakeError
	if !errors.As(err, &other) {
		return err
	}
	return fmt.Errorf("the data directory %s has the identity of a live server on the host %s, whose data directory is %s: "+
		"one of them is a copy; delete the file %q in the copy, and start its server again", d.home().Directory, other.Host, other.Directory, instanceFile)
}

func (d *dataDir) close() error {
	if d.lock == nil {
		return nil
	}
	return d.lock.Close()
}

// apiKey returns the generated API key. The first start generates it.
func (d *dataDir) apiKey() (key secret.Value, fresh bool, err error) {
	path := filepath.Join(d.path, apiKeyFile)
	b, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(b)) != "" {
		return secret.New(strings.TrimSpace(string(b))), false, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return secret.Value{}, false, fmt.Errorf("read the API key: %w (or set GATEHOOK_API_KEY)", err)
	}
	s := "gk_" + base64.RawURLEncoding.EncodeToString(random(24))
	// Written under another name first: a start that is cut off must not leave half a
	// key.
	if err := os.WriteFile(path+".new", []byte(s+"\n"), 0o600); err != nil {
		return secret.Value{}, false, fmt.Errorf("store the API key: %w (or set GATEHOOK_API_KEY)", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return secret.Value{}, false, fmt.Errorf("store the API key: %w (or set GATEHOOK_API_KEY)", err)
	}
	return secret.New(s), true, nil
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}
