package events_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"taskledger/events"
	"taskledger/migrations/testdb"
)

// However deep a failed connection is in an error, and however many there are: host and database are told, the user is
// not.
func TestSafeText(t *testing.T) {
	t.Parallel()
	here, err := pgx.ParseConfig(testdb.EmptyURL(t))
	if err != nil {
		t.Fatal(err)
	}
	_, refused := pgx.Connect(t.Context(), "postgres://s3cret:s3cret@127.0.0.1:1,127.0.0.1:2/one?sslmode=disable")
	_, wrong := pgx.Connect(t.Context(),
		fmt.Sprintf("postgres://s3cret:s3cret@%s:%d/two?sslmode=disable", here.Host, here.Port))
	text := events.SafeText(fmt.Errorf("open: %w", errors.Join(refused, fmt.Errorf("close: %w", wrong))))
	want := fmt.Sprintf(`open: no connection to the database "one" at 127.0.0.1:1, 127.0.0.1:2: connection refused
close: no connection to the database "two" at %s:%d: the password is wrong (SQLSTATE 28P01)`, here.Host, here.Port)
	if text != want {
		t.Errorf("%s\nwant %s", strings.ReplaceAll(text, "s3cret", "(a secret)"), want)
	}
	if text := events.SafeText(errors.New("plain")); text != "plain" {
		t.Errorf("%q", text)
	}
}
