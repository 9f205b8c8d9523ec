package events

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// Column is a column of rows that are made of a T.
type Column[T any] struct {
	Name   string
	oid    uint32
	append func(b []byte, item *T) []byte
}

// NewColumn returns a column whose value in each row is that of a function. What PostgreSQL type it has follows from V.
func NewColumn[T, V any](name string, of func(*T) V) Column[T] {
	oid, encode := encoder[V]()
	return Column[T]{name, oid, func(b []byte, item *T) []byte { return encode(b, of(item)) }}
}

// Rows are rows on their way into PostgreSQL: an array of a composite type of the ledger's schema, in the binary form
// of the protocol, for unnest. It is a parameter of Querier.Write. An array a column would cost a quarter more:
// PostgreSQL takes each of them apart by itself, and joins the elements to rows again.
type Rows struct {
	n    int
	body []byte // begins with rowsHead bytes for the head of the array
}

// rowsHead is the length of the head.
const rowsHead = 5 * 4

// rowBytes is about what a row takes.
const rowBytes = 512

// NewRows makes a row of each item. A migration makes the composite type, with these columns in this order.
func NewRows[T any](columns []Column[T], items []T) *Rows {
	r := &Rows{n: len(items), body: make([]byte, rowsHead, rowsHead+rowBytes)}
	for i := range items {
		r.body = appendRow(r.body, columns, &items[i])
		if i == 0 { // the others are about as long, or shorter
			r.body = slices.Grow(r.body, (len(items)-1)*min(len(r.body)*9/8, 2*rowBytes))
		}
	}
	return r
}

// appendRow appends an element of Rows: its length, and its columns, each with its type.
func appendRow[T any](b []byte, columns []Column[T], item *T) []byte {
	at := len(b)
	b = appendUint32(appendUint32(b, 0), uint32(len(columns)))
	for _, c := range columns {
		b = c.append(appendUint32(b, c.oid), item)
	}
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}

// Len is how many rows there are.
func (r *Rows) Len() int { return r.n }

// GoString implements fmt.GoStringer, for an error that names an argument: it is not to tell what users write.
func (r *Rows) GoString() string { return fmt.Sprintf("%d rows", r.n) }

// encoder is how a value is written in the protocol's binary form: the OID of its PostgreSQL type, and what appends its
// length in bytes, or -1 for NULL, and those.
func encoder[V any]() (oid uint32, encode func([]byte, V) []byte) {
	var f any
	switch any(*new(V)).(type) {
	case string:
		oid, f = pgtype.TextOID, encodeText
	case *string:
		oid, f = pgtype.TextOID, nullable(encodeText)
	case []byte:
		oid, f = pgtype.ByteaOID, encodeBytes
	case jsonObject:
		oid, f = pgtype.JSONBOID, encodeJSONB
	case bool:
		oid, f = pgtype.BoolOID, encodeBool
	case int32:
		oid, f = pgtype.Int4OID, encodeInt32
	case int64:
		oid, f = pgtype.Int8OID, encodeInt64
	case [16]byte:
		oid, f = pgtype.UUIDOID, encodeUUID
	case pgtype.UUID:
		oid, f = pgtype.UUIDOID, encodeNullUUID
	case time.Time:
		oid, f = pgtype.TimestamptzOID, encodeTime
	case *time.Time:
		oid, f = pgtype.TimestamptzOID, nullable(encodeTime)
	}
	encode, ok := f.(func([]byte, V) []byte)
	if !ok {
		panic(fmt.Sprintf("a column of %T", *new(V)))
	}
	return oid, encode
}

// jsonObject is the text of one, for a column of type jsonb.
type jsonObject []byte

const null = ^uint32(0)

func nullable[V any](encode func([]byte, V) []byte) func([]byte, *V) []byte {
	return func(b []byte, v *V) []byte {
		if v == nil {
			return appendUint32(b, null)
		}
		return encode(b, *v)
	}
}

func encodeText(b []byte, v string) []byte { return append(appendUint32(b, uint32(len(v))), v...) }

func encodeBytes(b []byte, v []byte) []byte {
	if v == nil {
		return appendUint32(b, null)
	}
	return append(appendUint32(b, uint32(len(v))), v...)
}

func encodeJSONB(b []byte, v jsonObject) []byte {
	const version = 1
	return append(append(appendUint32(b, uint32(1+len(v))), version), v...)
}

func encodeBool(b []byte, v bool) []byte {
	b = append(appendUint32(b, 1), 0)
	if v {
		b[len(b)-1] = 1
	}
	return b
}

func encodeInt32(b []byte, v int32) []byte { return appendUint32(appendUint32(b, 4), uint32(v)) }

func encodeInt64(b []byte, v int64) []byte {
	return binary.BigEndian.AppendUint64(appendUint32(b, 8), uint64(v))
}

func encodeUUID(b []byte, v [16]byte) []byte { return append(appendUint32(b, 16), v[:]...) }

func encodeNullUUID(b []byte, v pgtype.UUID) []byte {
	if !v.Valid {
		return appendUint32(b, null)
	}
	return encodeUUID(b, v.Bytes)
}

// epoch is PostgreSQL's, from which a timestamptz counts its microseconds.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

func encodeTime(b []byte, v time.Time) []byte { return encodeInt64(b, v.UnixMicro()-epoch) }

func appendUint32(b []byte, n uint32) []byte { return binary.BigEndian.AppendUint32(b, n) }

// rowsCodec is how pgx writes Rows, and nothing else, as an array of the composite type with the OID row. Nothing is
// read as such an array: the codec that is embedded completes the interface.
type rowsCodec struct {
	pgtype.ByteaCodec
	row uint32
}

// PlanEncode implements pgtype.Codec.
func (c rowsCodec) PlanEncode(_ *pgtype.Map, _ uint32, format int16, value any) pgtype.EncodePlan {
	if _, ok := value.(*Rows); ok && format == pgtype.BinaryFormatCode {
		return c
	}
	return nil
}

// Encode implements pgtype.EncodePlan.
func (c rowsCodec) Encode(value any, b []byte) ([]byte, error) {
	return append(b, value.(*Rows).array(c.row)...), nil
}

// array is the whole array, of elements with this OID: one dimension that begins at 1, and no NULL.
func (r *Rows) array(row uint32) []byte {
	for i, n := range [...]uint32{1, 0, row, uint32(r.n), 1} {
		binary.BigEndian.PutUint32(r.body[4*i:], n)
	}
	return r.body
}

// of is the array for a parameter of this type, which the connection must have learned.
func (r *Rows) of(types *pgtype.Map, oid uint32) ([]byte, error) {
	if t, ok := types.TypeForOID(oid); ok {
		if codec, ok := t.Codec.(rowsCodec); ok {
			return r.array(codec.row), nil
		}
	}
	return nil, fmt.Errorf("a parameter for rows is of another type, %d", oid)
}

// learnRows has a connection know the composite types of the schema, once. OIDs are a connection's own knowledge,
// because those of a schema that was made anew are others.
func (db *DB) learnRows(ctx context.Context, conn *pgx.Conn) error {
	const learned = "taskledger rows"
	known := conn.PgConn().CustomData()
	if known[learned] != nil {
		return nil
	}
	rows, err := conn.Query(ctx, `
		SELECT t.typname, t.oid, t.typarray
		FROM pg_catalog.pg_type t
		JOIN pg_catalog.pg_class c ON c.oid = t.typrelid AND c.relkind = 'c'
		JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
		WHERE n.nspname = $1`, db.schema)
	if err != nil {
		return err
	}
	var (
		name       string
		row, array uint32
	)
	_, err = pgx.ForEachRow(rows, []any{&name, &row, &array}, func() error {
		conn.TypeMap().RegisterType(&pgtype.Type{Name: name + "[]", OID: array, Codec: rowsCodec{row: row}})
		known[learned] = true
		return nil
	})
	return err
}

// CopyRows copies rows into a table of the schema that has these columns, until next gives no more, by one COPY in the
// protocol's binary form. It returns how many there were.
func CopyRows[T any](
	ctx context.Context, tx *Tx, table string, columns []Column[T], next func() ([]T, error),
) (int64, error) {
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = c.Name
	}
	from := &copyReader[T]{columns: columns, next: next}
	from.buf = append(from.buf, "PGCOPY\n\377\r\n\000"...)
	from.buf = append(from.buf, 0, 0, 0, 0, 0, 0, 0, 0) // no flags, no more of the head
	text := `COPY ` + pgx.Identifier{tx.db.schema, table}.Sanitize() + ` (` + strings.Join(names, ", ") + `)
		FROM STDIN (FORMAT binary)`
	tag, err := tx.Conn().PgConn().CopyFrom(ctx, from, text)
	return tag.RowsAffected(), err
}

// copyReader is what a COPY reads.
type copyReader[T any] struct {
	columns []Column[T]
	next    func() ([]T, error)
	items   []T // that are not in buf yet
	buf     []byte
	at      int // what of it was read
	ended   bool
}

// Read implements io.Reader.
func (r *copyReader[T]) Read(p []byte) (int, error) {
	for r.at == len(r.buf) {
		if r.ended {
			return 0, io.EOF
		}
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.buf[r.at:])
	r.at += n
	return n, nil
}

// fill writes some rows, or the trailer, into buf.
func (r *copyReader[T]) fill() (err error) {
	r.at, r.buf = 0, r.buf[:0]
	if len(r.items) == 0 {
		if r.items, err = r.next(); err != nil {
			return err
		}
	}
	if r.ended = len(r.items) == 0; r.ended {
		r.buf = append(r.buf, 255, 255)
	}
	const some = 64 << 10
	for len(r.items) > 0 && len(r.buf) < some {
		r.buf = binary.BigEndian.AppendUint16(r.buf, uint16(len(r.columns)))
		for _, c := range r.columns {
			r.buf = c.append(r.buf, &r.items[0])
		}
		r.items = r.items[1:]
	}
	return nil
}
