package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// HeldError is returned by Start when another owner runs a server on the directory.
type HeldError struct {
	Dir string
	PID int // of the owner
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("process %d already runs the PostgreSQL in %s", e.PID, e.Dir)
}

// ErrNotRunning is returned by Attach when nobody runs a server on the directory.
var ErrNotRunning = errors.New("no PostgreSQL is running on this directory")

// lock is held by the owner of a directory. The system frees it with its process; the file stays and says who holds it.
type lock struct {
	file *os.File
}

// acquire looks again for a moment when the holder has no name or no life: that is somebody who is just looking
// (Attach), or who has the lock since an instant.
func acquire(ctx context.Context, dir string) (*lock, error) {
	file, err := os.OpenFile(lockPath(dir), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the directory of PostgreSQL: %w", err)
	}
	deadline := time.Now().Add(2 * time.Second)
	for pause := newBackoff(); ; {
		ours, err := tryLock(file)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", file.Name(), err), file.Close())
		}
		if ours {
			return own(file)
		}
		pid, _ := holder(dir)
		if pid != 0 && alive(pid) || time.Now().After(deadline) || !pause.wait(ctx) {
			return nil, errors.Join(&HeldError{Dir: dir, PID: pid}, file.Close())
		}
	}
}

// own says in the file whose the lock is.
func own(file *os.File) (*lock, error) {
	l := &lock{file: file}
	if err := l.write("%d\n", os.Getpid()); err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", file.Name(), err), file.Close())
	}
	return l, nil
}

// publish tells where the server listens.
func (l *lock) publish(port int) error { return l.write("%d\n%d\n", os.Getpid(), port) }

func (l *lock) write(format string, args ...any) error {
	if err := l.file.Truncate(0); err != nil {
		return err
	}
	_, err := l.file.WriteAt(fmt.Appendf(nil, format, args...), 0)
	return err
}

func (l *lock) release() {
	// What is left in the file does no harm: a lock that is free has no holder, whatever it says.
	_ = l.file.Truncate(0)
	_ = l.file.Close()
}

func lockPath(dir string) string { return filepath.Join(dir, "lock") }

// holder reads who has the lock and on which port their server listens; 0 is not known (yet).
func holder(dir string) (pid, port int) {
	content, err := os.ReadFile(lockPath(dir))
	if err != nil {
		return 0, 0
	}
	// A holder that is still starting has written one line only.
	_, _ = fmt.Sscan(string(content), &pid, &port)
	return pid, port
}

// Attach returns the URL of the server that another process runs on the directory, waiting for one that is just
// starting. It returns ErrNotRunning when there is none.
func Attach(ctx context.Context, dir string) (string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", ErrNotRunning
	}
	if err != nil {
		return "", fmt.Errorf("directory of PostgreSQL: %w", err)
	}
	for pause := newBackoff(); ; {
		if err := held(dir); err != nil {
			return "", err
		}
		if _, port := holder(dir); port != 0 {
			password, err := readPassword(dir)
			return connURL(roleName, password, port, databaseName), err
		}
		if !pause.wait(ctx) {
			return "", fmt.Errorf("wait for the PostgreSQL in %s to start: %w", dir, context.Cause(ctx))
		}
	}
}

// held returns ErrNotRunning when nobody has the lock.
func held(dir string) error {
	file, err := os.OpenFile(lockPath(dir), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotRunning
	}
	if err != nil {
		return fmt.Errorf("lock of PostgreSQL: %w", err)
	}
	defer file.Close()
	free, err := tryLock(file)
	if err != nil {
		return fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	if free {
		return ErrNotRunning
	}
	return nil
}
