package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	embedded "github.com/fergusstrange/embedded-postgres"
)

var downloads = map[int]embedded.PostgresVersion{
	14: embedded.V14, 15: embedded.V15, 16: embedded.V16, 17: embedded.V17, 18: embedded.V18,
}

// download returns what an earlier start downloaded below dir, else downloads it.
func (s search) download(ctx context.Context, dir string, major int, log *slog.Logger) (binaries, error) {
	version, ok := downloads[major]
	if !ok {
		return binaries{}, fmt.Errorf("there is no download for version %d", major)
	}
	home := filepath.Join(dir, string(version))
	if found, ok := inspect(ctx, filepath.Join(home, "bin")); ok {
		return found, nil
	}
	log.Info("downloading PostgreSQL", "version", string(version), "dir", home)
	// The library cannot be interrupted. When ctx ends, so does the program, and the next start begins anew.
	fetched := make(chan error, 1)
	go func() { fetched <- s.fetch(home, version) }()
	select {
	case err := <-fetched:
		if err != nil {
			return binaries{}, err
		}
	case <-ctx.Done():
		return binaries{}, context.Cause(ctx)
	}
	found, ok := inspect(ctx, filepath.Join(home, "bin"))
	if !ok {
		return binaries{}, errors.New("what was downloaded does not run here")
	}
	return found, nil
}

// fetch makes home, whole or not at all. The library only knows how to start a server; that it cannot (as root, say) is
// no matter once the programs are there.
func (s search) fetch(home string, version embedded.PostgresVersion) error {
	temp := home + ".new"
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	port, err := freePort()
	if err != nil {
		return err
	}
	unpacked := filepath.Join(temp, "unpacked")
	server := embedded.NewDatabase(embedded.DefaultConfig().
		Version(version).BinaryRepositoryURL(s.repository).Port(uint32(port)).Logger(io.Discard).
		BinariesPath(unpacked).RuntimePath(filepath.Join(temp, "run")).CachePath(filepath.Join(temp, "cache")))
	startErr := server.Start()
	if startErr == nil {
		if err := server.Stop(); err != nil {
			return err
		}
	}
	if _, err := os.Stat(binaries{dir: filepath.Join(unpacked, "bin")}.path("postgres")); err != nil {
		if startErr != nil {
			return errors.New(strings.Join(strings.Fields(startErr.Error()), " "))
		}
		return err
	}
	return os.Rename(unpacked, home)
}
