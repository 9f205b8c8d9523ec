package postgres

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// endWithParent makes the kernel shut the child down (fast, in PostgreSQL's terms) when its owner is gone, however it
// went.
func endWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = fastShutdown }

// runsOn reports whether the process has path as one of its arguments. Everybody may read them, unlike its working
// directory.
func runsOn(pid int, path string) bool {
	args, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return false
	}
	for arg := range bytes.SplitSeq(args, []byte{0}) {
		if string(arg) == path {
			return true
		}
	}
	return false
}

// isStranger reports whether there is a process, or a thread, of that number which is surely no postmaster on the
// directory: those are called so, and work in it. In a container not even root may see where.
func isStranger(pid int, data string) bool {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	name, err := os.ReadFile(filepath.Join(proc, "comm"))
	if err != nil {
		return false
	}
	if !isPostmaster(string(name)) {
		return true
	}
	in, inErr := os.Stat(filepath.Join(proc, "cwd"))
	own, ownErr := os.Stat(data)
	return inErr == nil && ownErr == nil && !os.SameFile(in, own)
}
