package testdb_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"taskledger/migrations"
	"taskledger/migrations/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

func TestNewIsMigratedAndItsOwn(t *testing.T) {
	t.Parallel()
	first, second := testdb.New(t), testdb.New(t)
	if err := migrations.Check(t.Context(), first, testdb.Schema); err != nil {
		t.Error(err)
	}
	if _, err := first.Exec(t.Context(), `CREATE TABLE mine ()`); err != nil {
		t.Fatal(err)
	}
	_, err := second.Exec(t.Context(), `SELECT FROM mine`)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "42P01" {
		t.Errorf("another test's table: %v, want that it does not exist", err)
	}
}

func TestDatabaseIsDroppedWithItsTest(t *testing.T) {
	t.Parallel()
	var url string
	t.Run("the test", func(t *testing.T) {
		url = testdb.URL(t)
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		// The connection stays open: a process that the test forgot must not keep the database.
		if err := conn.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	_, err := pgx.Connect(t.Context(), url)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "3D000" {
		t.Errorf("connect after the test: %v, want that the database does not exist", err)
	}
}

func TestServerIsTheTestsAlone(t *testing.T) {
	t.Parallel()
	server := testdb.Server(t)
	conn, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var databases int
	err = conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_database WHERE datname LIKE 'test\_%'`).Scan(&databases)
	if err != nil || databases != 0 {
		t.Errorf("%d databases of other tests (%v), want none", databases, err)
	}
}

func TestSweepTakesOnlyWhatIsDead(t *testing.T) {
	t.Parallel()
	old := time.Now().Add(-2 * time.Hour)
	dead, young := madeDir(t), madeDir(t)
	if err := os.Chtimes(dead, old, old); err != nil {
		t.Fatal(err)
	}
	held := filepath.Dir(dataDirectory(t, testdb.Server(t).AdminURL()))
	if err := os.Chtimes(held, old, old); err != nil {
		t.Fatal(err)
	}
	testdb.Sweep(t.Context())
	for dir, want := range map[string]bool{dead: false, young: true, held: true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s: %v; there: want %v", dir, err, want)
		}
	}
}

func madeDir(t *testing.T) string {
	t.Helper()
	dir, err := testdb.MakeDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func dataDirectory(t *testing.T, url string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var dir string
	if err := conn.QueryRow(t.Context(), `SHOW data_directory`).Scan(&dir); err != nil {
		t.Fatal(err)
	}
	return dir
}
