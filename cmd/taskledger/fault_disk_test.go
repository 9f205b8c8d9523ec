package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"taskledger/migrations/postgres"
	"taskledger/migrations/testdb"
)

// A full disk needs no root: an INSERT into a table whose file is /dev/full has its block refused by the kernel with
// ENOSPC, which PostgreSQL reports as it reports any other full disk. Triggers make every INSERT into the log and the
// read models such a one, at once or at its commit, while the disk is full at that moment.
const fullDisk = `
	CREATE SCHEMA fault;
	CREATE TABLE fault.disk (full_at text);
	INSERT INTO fault.disk VALUES (NULL);
	CREATE TABLE fault.filler (byte integer);
	CREATE FUNCTION fault.extend() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
	BEGIN
		IF (SELECT full_at FROM fault.disk) = TG_ARGV[0] THEN
			INSERT INTO fault.filler VALUES (1);
		END IF;
		RETURN NULL;
	END
	$$;
	DO $$
	DECLARE
		name text;
	BEGIN
		FOREACH name IN ARRAY ARRAY['task_events', 'tasks', 'task_history', 'users'] LOOP
			EXECUTE format('CREATE TRIGGER fault_statement BEFORE INSERT ON taskledger.%I
				FOR EACH STATEMENT EXECUTE FUNCTION fault.extend(''statement'')', name);
			EXECUTE format('CREATE CONSTRAINT TRIGGER fault_commit AFTER INSERT ON taskledger.%I
				DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fault.extend(''commit'')', name);
		END LOOP;
	END
	$$;
	CHECKPOINT`

// pretendedDisk says the same where there is no /dev/full.
const pretendedDisk = `
	CREATE FUNCTION fault.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		RAISE EXCEPTION 'no space left on device' USING ERRCODE = 'disk_full';
	END
	$$;
	CREATE TRIGGER refuse BEFORE INSERT ON fault.filler FOR EACH STATEMENT EXECUTE FUNCTION fault.refuse()`

func (s *stage) prepareDisk() {
	s.t.Helper()
	var file string
	err := s.session(s.t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, fullDisk); err != nil {
			return err
		}
		return conn.QueryRow(ctx, `
			SELECT current_setting('data_directory') || '/' || pg_relation_filepath('fault.filler')`).Scan(&file)
	})
	if err != nil {
		s.t.Fatalf("prepare a full disk: %v", err)
	}
	if err := replaceByFull(filepath.FromSlash(file)); err != nil {
		s.t.Logf("no /dev/full here, so a trigger raises SQLSTATE 53100 instead: %v", err)
		if err := s.execute(pretendedDisk); err != nil {
			s.t.Fatalf("prepare a full disk: %v", err)
		}
	}
	err = s.execute(`INSERT INTO fault.filler VALUES (1)`)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "53100" {
		s.t.Fatalf("the disk is not full: %v", err)
	}
}

func (s *stage) execute(sql string) error {
	return s.session(s.t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql)
		return err
	})
}

func replaceByFull(file string) error {
	if _, err := os.Stat("/dev/full"); err != nil {
		return err
	}
	if err := os.Remove(file); err != nil {
		return err
	}
	return os.Symlink("/dev/full", file)
}

func (s *stage) fillDisk(moment string) func(context.Context, *rand.Rand) error {
	return func(ctx context.Context, random *rand.Rand) error {
		if err := s.execute(`UPDATE fault.disk SET full_at = '` + moment + `'`); err != nil {
			return err
		}
		rest(ctx, random, 50*time.Millisecond, 1500*time.Millisecond)
		if err := s.execute(`UPDATE fault.disk SET full_at = NULL`); err != nil {
			return err
		}
		return s.recover(ctx, func() bool { return true })
	}
}

// diskSize holds a cluster and the writes of a long run.
const diskSize = 512 << 20

// openDatabase gives PostgreSQL a small file system of its own, to fill it to the last byte, where this user may mount
// one.
func openDatabase(t *testing.T) (server *postgres.Server, disk string) {
	t.Helper()
	disk, err := mountDisk(t)
	if err != nil {
		t.Logf(
			"no file system of PostgreSQL's own, so none is filled for real, "+
				"log and read models alone run out of disk: %v",
			err,
		)
		return testdb.Server(t), ""
	}
	server, err = postgres.Start(t.Context(), postgres.Options{Dir: disk, Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := server.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return server, disk
}

func mountDisk(t *testing.T) (string, error) {
	t.Helper()
	dir := dataDir(t)
	out, err := exec.Command(
		"mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%d,mode=0711", diskSize), "taskledger-fault", dir,
	).
		CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("mount: %w: %s", err, bytes.TrimSpace(out))
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir, nil
}

// fillFileSystem leaves PostgreSQL not a byte: not for its WAL, nor to start again after a backend was killed.
func (s *stage) fillFileSystem(ctx context.Context, random *rand.Rand) error {
	balloon := filepath.Join(s.disk, "balloon")
	if err := inflate(balloon); !errors.Is(err, syscall.ENOSPC) {
		return errors.Join(err, os.Remove(balloon))
	}
	rest(ctx, random, 50*time.Millisecond, time.Second)
	// It may have ended by itself.
	_ = s.killOne(ctx)
	rest(ctx, random, 50*time.Millisecond, time.Second)
	if err := os.Remove(balloon); err != nil {
		return err
	}
	return s.recover(ctx, func() bool { return true })
}

// inflate writes until that is refused, but no more than diskSize: should this not be the disk it was meant for, it
// stays whole.
func inflate(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	chunk := make([]byte, 1<<16)
	for range diskSize / len(chunk) {
		if _, err := f.Write(chunk); err != nil {
			return err
		}
	}
	return errors.New("the file system took more than its size")
}
