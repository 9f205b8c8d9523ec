//go:build unix

package postgres

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

const (
	fastShutdown      = syscall.SIGINT
	immediateShutdown = syscall.SIGQUIT
)

func (p *process) signal(_ binaries, sig syscall.Signal) {
	// The only error is that it has ended already.
	_ = p.cmd.Process.Signal(sig)
}

func detach(cmd *exec.Cmd) {
	attr := attributes(cmd)
	attr.Setsid = true
	endWithParent(attr)
}

func attributes(cmd *exec.Cmd) *syscall.SysProcAttr {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	return cmd.SysProcAttr
}

// alive reports whether there is such a process, ours or not.
func alive(pid int) bool {
	p, err := os.FindProcess(pid)
	if err != nil {
		return false
	}
	err = p.Signal(syscall.Signal(0))
	return err == nil || errors.Is(err, syscall.EPERM)
}

// isPostmaster reports whether a process of that name may be a postmaster.
func isPostmaster(name string) bool {
	return strings.Contains(name, "postgres") || strings.Contains(name, "postmaster")
}

// names reports whether a command line, as ps shows it, has path as one of its arguments.
func names(commandLine, path string) bool {
	return strings.Contains(" "+strings.TrimSpace(commandLine)+" ", " "+path+" ")
}
