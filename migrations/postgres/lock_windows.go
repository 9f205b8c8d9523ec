package postgres

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// tryLock reports whether the lock is ours now. Closing the file frees it. It locks a byte far behind the content: on
// Windows nobody else can read what is locked.
func tryLock(f *os.File) (bool, error) {
	far := windows.Overlapped{OffsetHigh: 1}
	err := windows.LockFileEx(
		windows.Handle(f.Fd()),
		windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY,
		0,
		1,
		0,
		&far,
	)
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return false, nil
	}
	return err == nil, err
}
