package postgres

import (
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/windows"
)

// PostgreSQL on Windows takes signals by name through a pipe, which pg_ctl knows how to write to.
const (
	fastShutdown      = "INT"
	immediateShutdown = "QUIT"
)

func (p *process) signal(bin binaries, name string) {
	// The only error is that it has ended already.
	_ = bin.command("pg_ctl", "kill", name, strconv.Itoa(p.pid())).Run()
}

func detach(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP}
}

func alive(pid int) bool {
	h, err := windows.OpenProcess(windows.SYNCHRONIZE, false, uint32(pid))
	if err != nil {
		return false
	}
	defer windows.CloseHandle(h)
	state, err := windows.WaitForSingleObject(h, 0)
	return err == nil && state == uint32(windows.WAIT_TIMEOUT)
}

// runsOn need not look closer: pg_ctl reaches nothing but a PostgreSQL by that number.
func runsOn(pid int, _ string) bool { return alive(pid) }

// isStranger is no question here: PostgreSQL reaches nothing but a PostgreSQL by its number.
func isStranger(int, string) bool { return false }
