// Package filelock makes sure that only one process at a time uses a directory,
// by a lock on a file in it.
package filelock

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrInUse is the error of Open while another process has the file locked.
var ErrInUse = errors.New("another process uses it")

// File is a locked file. Close unlocks it.
type File struct{ *os.File }

// Open opens a file, which it makes if it is missing, and locks it. The kernel
// releases the lock when the process ends, however it does; child processes do not
// inherit it, because Go opens files close-on-exec.
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
// a process that is being forked at this moment has the file open too, until it
// executes its program.
func (f *File) Close() error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.File.Close())
}
