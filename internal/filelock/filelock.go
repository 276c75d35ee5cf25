// Package filelock locks a file, so that only one process at a time uses the
// file's directory.
package filelock

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrInUse means that another process has locked the file.
var ErrInUse = errors.New("another process uses it")

// File is a locked file. Close unlocks it.
type File struct{ *os.File }

// Open opens and locks a file, which it creates if it is missing. The kernel
// releases the lock when the process ends, for whatever reason. Child processes do
// not inherit the lock, because Go opens files close-on-exec.
func Open(path string) (*File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return &File{f}, nil
}

// Close unlocks the file and closes it. Closing alone would not unlock it at once:
// a process that is being forked at this moment also has the file open, until it
// executes its program.
func (f *File) Close() error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.File.Close())
}
