package main

import (
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"
)

// procTick is the unit of processor time in /proc, on Linux whatever the machine.
const procTick = 10 * time.Millisecond

// procStat is what this program looks at of a process. reaped is the time of children that have ended.
type procStat struct {
	parent      int
	own, reaped time.Duration
}

// readStat reads proc(5)'s stat of a process; proc is /proc.
func readStat(proc fs.FS, pid int) (procStat, error) {
	content, err := fs.ReadFile(proc, strconv.Itoa(pid)+"/stat")
	if err != nil {
		return procStat{}, err
	}
	// The second field, a name in parentheses, can have anything in it.
	fields := strings.Fields(string(content[strings.LastIndexByte(string(content), ')')+1:]))
	if len(fields) < 15 {
		return procStat{}, fmt.Errorf("stat of process %d has too few fields", pid)
	}
	var n [5]int64
	for i, field := range []int{1, 11, 12, 13, 14} {
		if n[i], err = strconv.ParseInt(fields[field], 10, 64); err != nil {
			return procStat{}, fmt.Errorf("stat of process %d: %w", pid, err)
		}
	}
	return procStat{
		parent: int(n[0]), own: time.Duration(n[1]+n[2]) * procTick, reaped: time.Duration(n[3]+n[4]) * procTick,
	}, nil
}

// processTime is the processor time that a process has taken.
func processTime(proc fs.FS, pid int) (time.Duration, error) {
	stat, err := readStat(proc, pid)
	return stat.own, err
}

// familyTime is the processor time that a process and its children have taken, of those too that have ended.
func familyTime(proc fs.FS, pid int) (time.Duration, error) {
	parent, err := readStat(proc, pid)
	if err != nil {
		return 0, err
	}
	entries, err := fs.ReadDir(proc, ".")
	if err != nil {
		return 0, err
	}
	total := parent.own + parent.reaped
	for _, entry := range entries {
		child, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		// One that cannot be read has just ended.
		if stat, err := readStat(proc, child); err == nil && stat.parent == pid {
			total += stat.own
		}
	}
	return total, nil
}

// memory is in bytes.
type memory struct {
	Peak int64 `json:"peak_bytes"`
	Now  int64 `json:"bytes"`
}

// readMemory reads how much of the machine's memory a process has, and has had at most.
func readMemory(proc fs.FS, pid int) (memory, error) {
	content, err := fs.ReadFile(proc, strconv.Itoa(pid)+"/status")
	if err != nil {
		return memory{}, err
	}
	var m memory
	for line := range strings.Lines(string(content)) {
		var kilobytes int64
		name, value, _ := strings.Cut(line, ":")
		if _, err := fmt.Sscanf(value, "%d kB", &kilobytes); err != nil {
			continue
		}
		switch name {
		case "VmHWM":
			m.Peak = kilobytes << 10
		case "VmRSS":
			m.Now = kilobytes << 10
		}
	}
	return m, nil
}
