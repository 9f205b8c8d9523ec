//go:build unix && !linux

package postgres

import (
	"os/exec"
	"strconv"
	"syscall"
)

// endWithParent does nothing: only Linux can. The next owner of the directory stops what a killed one left.
func endWithParent(*syscall.SysProcAttr) {}

// runsOn reports whether the process has path as one of its arguments.
func runsOn(pid int, path string) bool {
	out, err := exec.Command("ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && names(string(out), path)
}

// isStranger reports whether there is a process of that number which is surely no postmaster.
func isStranger(pid int, _ string) bool {
	out, err := exec.Command("ps", "-o", "comm=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && !isPostmaster(string(out))
}
