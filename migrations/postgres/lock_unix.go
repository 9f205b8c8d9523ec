//go:build unix

package postgres

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// tryLock reports whether the lock is ours now. Closing the file frees it.
func tryLock(f *os.File) (bool, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}
