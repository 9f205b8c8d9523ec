package postgres

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"
)

const maxLog = 10 << 20

// logFile is PostgreSQL's log, open for appending by one run of a program.
type logFile struct {
	*os.File
	from int64 // where this run began
}

func openLog(path string) (logFile, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return logFile{}, err
	}
	from, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return logFile{}, errors.Join(err, f.Close())
	}
	return logFile{File: f, from: from}, nil
}

// said returns what this run complained of last and the lines that led there, else its last words, as the end of an
// error message.
func (f logFile) said() string {
	content, err := io.ReadAll(io.NewSectionReader(f.File, f.from, maxLog))
	if err != nil {
		return ""
	}
	var lines []string
	end := 0
	for line := range strings.Lines(string(content)) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		lines = append(lines, line)
		if complaint.MatchString(line) {
			end = len(lines)
		}
	}
	if end == 0 {
		end = len(lines)
	}
	if end == 0 {
		return ""
	}
	return ": " + strings.Join(lines[max(0, end-3):end], " | ")
}

var complaint = regexp.MustCompile(`(ERROR|FATAL|PANIC|error):`)

// rotate keeps the log from growing for ever: one old file of it stays.
func rotate(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || info.Size() < maxLog {
		return err
	}
	return os.Rename(path, path+".1")
}
