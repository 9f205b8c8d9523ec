package events

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/migrations"
	"taskledger/migrations/testdb"
)

// sample is a row with a column of each kind.
type sample struct {
	text   string
	maybe  *string
	octets []byte
	json   jsonObject
	yes    bool
	small  int32
	large  int64
	id     [16]byte
	maybeN pgtype.UUID
	at     time.Time
	maybeT *time.Time
}

var sampleColumns = []Column[sample]{
	NewColumn("a", func(s *sample) string { return s.text }),
	NewColumn("b", func(s *sample) *string { return s.maybe }),
	NewColumn("c", func(s *sample) []byte { return s.octets }),
	NewColumn("d", func(s *sample) jsonObject { return s.json }),
	NewColumn("e", func(s *sample) bool { return s.yes }),
	NewColumn("f", func(s *sample) int32 { return s.small }),
	NewColumn("g", func(s *sample) int64 { return s.large }),
	NewColumn("h", func(s *sample) [16]byte { return s.id }),
	NewColumn("i", func(s *sample) pgtype.UUID { return s.maybeN }),
	NewColumn("j", func(s *sample) time.Time { return s.at }),
	NewColumn("k", func(s *sample) *time.Time { return s.maybeT }),
}

// samples are rows of ordinary values, of none, of extreme ones, and of a size that no buffer begins with.
func samples() []sample {
	text, at, id := "a, \"b\" \\ ü\U0001F600", time.Date(2026, 2, 28, 23, 59, 59, 999999000, time.UTC), uuid.New()
	early := time.Date(1969, 12, 31, 23, 59, 59, 1000, time.UTC)
	long := strings.Repeat("long ", 100_000)
	return []sample{
		{
			text, &text, []byte{0, 1, 255}, jsonObject(`{"a": 1}`), true, 1, 2,
			id, pgtype.UUID{Bytes: id, Valid: true}, at, &at,
		},
		{json: jsonObject(`{}`), octets: []byte{}, at: early},
		{json: jsonObject(`{}`), small: -1 << 31, large: -1 << 63, at: early, maybeT: &early},
		{text: long, maybe: &long, json: jsonObject(`{}`), small: 1<<31 - 1, large: 1<<63 - 1, at: at},
	}
}

// What is written as Rows, or copied, is what is read.
func TestRowsArriveAsTheyAre(t *testing.T) {
	t.Parallel()
	for _, pooled := range []bool{false, true} {
		db := newDB(t)
		if pooled {
			db.prelude, db.prepares = `SELECT set_config('taskledger.ledger', 'on', true)`, false
		}
		const columns = `a text, b text, c bytea, d jsonb, e bool, f int, g bigint,
			h uuid, i uuid, j timestamptz, k timestamptz`
		for _, text := range []string{
			`CREATE TYPE {schema}.row_of_samples AS (` + columns + `)`,
			`CREATE TABLE {schema}.samples (` + columns + `)`,
		} {
			if _, err := db.Exec(t.Context(), text); err != nil {
				t.Fatal(err)
			}
		}
		want := samples()
		ways := map[string]func() error{
			"a statement": func() error {
				_, err := db.Write(t.Context(), `
					INSERT INTO {schema}.samples
					SELECT r.*
					FROM unnest($1::{schema}.row_of_samples[]) r`, []any{NewRows(sampleColumns, want)})
				return err
			},
			"a transaction": func() error {
				return db.Begin(t.Context(), pgx.TxOptions{}, func(tx *Tx) error {
					_, err := tx.Write(t.Context(), `
						INSERT INTO {schema}.samples
						SELECT r.*
						FROM unnest($2::{schema}.row_of_samples[]) r
						WHERE $1`, []any{true, NewRows(sampleColumns, want)})
					return err
				})
			},
			"a COPY": func() error {
				rest := want
				return db.Begin(t.Context(), pgx.TxOptions{}, func(tx *Tx) error {
					n, err := CopyRows(t.Context(), tx, "samples", sampleColumns, func() ([]sample, error) {
						next := rest[:min(3, len(rest))]
						rest = rest[len(next):]
						return next, nil
					})
					if n != int64(len(want)) {
						t.Errorf("a COPY of %d rows", n)
					}
					return err
				})
			},
		}
		for name, way := range ways {
			if err := way(); err != nil {
				t.Fatalf("%s, pooled %t: %v", name, pooled, err)
			}
			if got := readSamples(t, db); fmt.Sprint(got) != fmt.Sprint(shown(want)) {
				t.Errorf("%s, pooled %t:\n%.300v\n%.300v", name, pooled, got, shown(want))
			}
		}
	}
}

// shown are rows as text, with what a pointer points to.
func shown(rows []sample) (out []string) {
	for _, s := range rows {
		maybe, maybeT := "none", "none"
		if s.maybe != nil {
			maybe = *s.maybe
		}
		if s.maybeT != nil {
			maybeT = s.maybeT.UTC().String()
		}
		out = append(out, fmt.Sprint(s.text, maybe, s.octets == nil, s.octets, string(s.json), s.yes, s.small,
			s.large, s.id, s.maybeN, s.at.UTC(), maybeT))
	}
	return out
}

// readSamples empties the table.
func readSamples(t *testing.T, db *DB) []string {
	t.Helper()
	var out []sample
	err := db.Query(t.Context(), `DELETE FROM {schema}.samples RETURNING *`, nil, func(rows pgx.Rows) error {
		for rows.Next() {
			var (
				s    sample
				json []byte
			)
			err := rows.Scan(&s.text, &s.maybe, &s.octets, &json, &s.yes, &s.small,
				&s.large, &s.id, &s.maybeN, &s.at, &s.maybeT)
			if err != nil {
				return err
			}
			s.json = json
			out = append(out, s)
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return shown(out)
}

// A COPY whose source fails leaves nothing, and says why.
func TestACopyThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	columns := []Column[Event]{NewColumn("user_id", func(e *Event) string { return e.UserID }),
		NewColumn("seq", func(e *Event) int64 { return e.Seq })}
	failed := errors.New("the source failed")
	for name, next := range map[string]func(n int) ([]Event, error){
		"its source": func(n int) ([]Event, error) {
			return []Event{{UserID: "u", Seq: int64(n)}}, map[int]error{3: failed}[n]
		},
		"the same row":  func(n int) ([]Event, error) { return []Event{{UserID: "u", Seq: 1}}, nil },
		"what it reads": func(n int) ([]Event, error) { return []Event{{UserID: "\x00", Seq: 1}}, nil },
	} {
		n := 0
		err := db.Begin(t.Context(), pgx.TxOptions{}, func(tx *Tx) error {
			_, err := CopyRows(t.Context(), tx, "skipped_events", columns, func() ([]Event, error) {
				n++
				return next(n)
			})
			return err
		})
		if err == nil || name == "its source" && !strings.Contains(err.Error(), failed.Error()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var left int
	_, err := One(t.Context(), db, `SELECT count(*) FROM {schema}.skipped_events`, nil, &left)
	if err != nil || left != 0 {
		t.Errorf("%d rows, %v", left, err)
	}
}

// The type that rows of the log are of has the columns that are written, in their order, or one would be taken for
// another.
func TestRowsOfTheLogHaveTheColumnsOfTheirType(t *testing.T) {
	t.Parallel()
	var want, got []string
	for _, c := range appendedColumns {
		want = append(want, c.Name)
	}
	_, err := One(t.Context(), newDB(t), `
		SELECT array_agg(attname::text ORDER BY attnum)
		FROM pg_attribute
		WHERE attrelid = '{schema}.row_of_task_events'::regclass`, nil, &got)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
}

// A schema that is made anew under a process has other types: who writes such rows on an old connection fails, is not
// refused for its data, and has learned it.
func TestASchemaThatIsMadeAnewTakesRows(t *testing.T) {
	t.Parallel()
	config := testdb.New(t).Config()
	config.MaxConns = 1
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	db := NewDB(pool, testdb.Schema, "")
	l := openLog(t, db)
	write := func(to Querier) error {
		e := &Event{Data: Skipped{}, stored: []byte(`{}`)}
		rows := NewRows(appendedColumns, []appended{{Event: e, commit: &pending{Commit: &Commit{}}}})
		_, err := to.Write(t.Context(), `SELECT FROM unnest($1::{schema}.row_of_task_events[])`, []any{rows})
		return err
	}
	ways := map[string]func() error{
		"append": func() error {
			return l.Append(t.Context(), facts(uuid.NewString(), 1, uuid.Nil, TaskCreated{Title: "a"}))
		},
		"write": func() error { return write(db) },
		"transaction": func() error {
			return db.Begin(t.Context(), pgx.TxOptions{}, func(tx *Tx) error { return write(tx) })
		},
	}
	for name, way := range ways {
		if err := way(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	for name, way := range ways {
		if _, err := pool.Exec(t.Context(), `DROP SCHEMA `+testdb.Schema+` CASCADE`); err != nil {
			t.Fatal(err)
		}
		if err := migrations.Up(t.Context(), pool, testdb.Schema); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err = way(); isRefusal(err) || err != nil && strings.Contains(err.Error(), "0x0") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err != nil {
			t.Errorf("%s, at last: %v", name, err)
		}
	}
}
