package postgres

import (
	"path/filepath"
	"strconv"
	"testing"
)

func TestPostmasterEndsWithItsKilledOwner(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	owner, _ := startOwner(t, dir)
	data := filepath.Join(dir, "data")
	pid, err := strconv.Atoi(pidFile(data)[0])
	if err != nil {
		t.Fatal(err)
	}
	kill9(t, owner.Process.Pid)
	// The error is the kill.
	_ = owner.Wait()
	eventually(t, "PostgreSQL to end with its owner", func() bool { return !runsOn(pid, data) })
}
