package main

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"testing/fstest"
	"time"
)

// stat is a line of /proc/<pid>/stat: times are in ticks of 10 ms.
func stat(name string, parent, user, system, userReaped, systemReaped int) *fstest.MapFile {
	return &fstest.MapFile{
		Data: fmt.Appendf(nil, "1 (%s) S %d 9 9 0 -1 4194560 100 200 1 0 %d %d %d %d 20 0 1 0 5 6 7\n",
			name, parent, user, system, userReaped, systemReaped),
	}
}

func TestProcessorTimeFromProc(t *testing.T) {
	t.Parallel()
	proc := fstest.MapFS{
		"10/stat":     stat("postgres", 1, 1, 2, 30, 40),
		"11/stat":     stat("postgres: (a) b)", 10, 100, 200, 7, 7),
		"12/stat":     stat("postgres", 10, 1000, 0, 0, 0),
		"13/stat":     stat("other", 1, 5000, 0, 0, 0),
		"14/stat":     {Data: []byte("14 (cut")},
		"meminfo":     {},
		"self/status": {},
	}
	tests := []struct {
		name string
		of   func(fs.FS, int) (time.Duration, error)
		pid  int
		want time.Duration
	}{
		{"a process without its children", processTime, 10, 30 * time.Millisecond},
		{"a name with parentheses", processTime, 11, 3 * time.Second},
		{"a process and its children, ended ones too", familyTime, 10, 13*time.Second + 730*time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got, err := tt.of(proc, tt.pid); err != nil || got != tt.want {
				t.Errorf("got %s, %v, want %s", got, err, tt.want)
			}
		})
	}
	for _, pid := range []int{14, 99} {
		if got, err := familyTime(proc, pid); err == nil {
			t.Errorf("process %d: got %s, want an error", pid, got)
		}
	}
}

func TestMemoryFromProc(t *testing.T) {
	t.Parallel()
	status := "Name:\tx\nVmPeak:\t  900 kB\nVmHWM:\t    80 kB\nVmRSS:\t    64 kB\nThreads:\t8\n"
	proc := fstest.MapFS{"10/status": {Data: []byte(status)}}
	if got, err := readMemory(proc, 10); err != nil || got != (memory{Peak: 80 << 10, Now: 64 << 10}) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := readMemory(proc, 11); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a process that is not there: %v", err)
	}
}
