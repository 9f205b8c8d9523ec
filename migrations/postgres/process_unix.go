//go:build unix

package postgres

import (
	"errors"
	"os"
	"os/exec"
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
