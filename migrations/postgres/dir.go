package postgres

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
)

const appName = "taskledger"

// DefaultDir is where data of the present user belongs: XDG_DATA_HOME or ~/.local/share, on macOS ~/Library/Application
// Support, on Windows %LocalAppData%, for root (a container, mostly) /var/lib; in a folder named taskledger. It asks
// getenv, which is os.Getenv.
func DefaultDir(getenv func(string) string) (string, error) {
	return defaultDir(runtime.GOOS, os.Geteuid(), getenv)
}

func defaultDir(goos string, uid int, getenv func(string) string) (string, error) {
	if goos == "windows" {
		return below(getenv("LocalAppData"))
	}
	if uid == 0 {
		return below("/var/lib")
	}
	if dir := getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return below(dir)
	}
	home := getenv("HOME")
	if home == "" {
		return below("")
	}
	if goos == "darwin" {
		return below(filepath.Join(home, "Library", "Application Support"))
	}
	return below(filepath.Join(home, ".local", "share"))
}

func below(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("this user has no home directory to keep data in: set DATA_DIR, or DATABASE_URL")
	}
	return filepath.Join(dir, appName), nil
}
