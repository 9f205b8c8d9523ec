package events

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// ErrBroken: an event does not follow the one before. A stream that is being read was erased meanwhile, or somebody
// took events out of the log.
var ErrBroken = errors.New("the stream is broken")

// Line is a line of an export: an event as its record, with its link of the chain. An operator's export has more of it,
// so that another ledger can take its place.
type Line struct {
	Event
	Hash Hash
	// IdempotencyKey and Fingerprint are those of a command, with its first event; both or neither.
	IdempotencyKey string
	Fingerprint    []byte
	// Skipped: an operator has had the event passed over.
	Skipped bool
	// Totals are of the whole export, with its first line; nil where the export does not say how much there is in it.
	Totals *Totals
	// Number is that of the line where it was read, from 1.
	Number int64
}

// Totals are how much there is in an export. So one that was cut between two lines is told from a whole one.
type Totals struct {
	Events int64 `json:"events"`
	Users  int64 `json:"users"`
}

// append appends the line in JSON. The record is its beginning, letter for letter, but for the brace that closes it.
func (l *Line) append(b []byte) []byte {
	b = l.AppendRecord(b)
	b = append(b[:len(b)-1], `,"hash":"`...)
	b = append(hex.AppendEncode(b, l.Hash[:]), '"')
	if l.IdempotencyKey != "" {
		b = AppendText(append(b, `,"idempotency_key":`...), l.IdempotencyKey)
		b = append(b, `,"request_fingerprint":"`...)
		b = append(hex.AppendEncode(b, l.Fingerprint), '"')
	}
	if l.Skipped {
		b = append(b, `,"skipped":true`...)
	}
	if l.Totals != nil {
		b = fmt.Appendf(b, `,"export":{"events":%d,"users":%d}`, l.Totals.Events, l.Totals.Users)
	}
	return append(b, '}')
}

// Exporter makes the lines of an export: of one user after the other, each stream from its beginning.
type Exporter struct {
	Totals
	// Seq is that of the last line.
	Seq int64

	user   string
	hash   Hash
	record []byte
}

// Append appends the line of the next event, whose Hash it sets, and a line break. It returns ErrBroken for one that
// does not follow.
func (x *Exporter) Append(b []byte, l *Line) ([]byte, error) {
	_, erased := l.Data.(UserErased)
	first := x.Users == 0 || x.user != l.UserID
	switch {
	case !first && l.Seq == x.Seq+1:
	case first && (l.Seq == 1 || erased):
		x.user, x.hash = l.UserID, Hash{}
		x.Users++
	default:
		return b, fmt.Errorf("%w before event %d of user %q", ErrBroken, l.Seq, l.UserID)
	}
	x.Seq = l.Seq
	x.Events++
	x.hash, x.record = l.Link(x.hash, x.record)
	l.Hash = x.hash
	return append(l.append(b), '\n'), nil
}

// exportBuffer is how many bytes of an export are gathered before they are written.
const exportBuffer = 64 << 10

// WriteExport writes the operator's export of a user, or of all users for an empty one, in a transaction of its own in
// which all is of one moment, and tells what is in it.
func WriteExport(ctx context.Context, db *DB, user string, w io.Writer) (Totals, error) {
	snapshot := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	var x Exporter
	err := db.Begin(ctx, snapshot, func(tx *Tx) error { return x.write(ctx, tx, user, w) })
	if err != nil {
		return x.Totals, fmt.Errorf("export: %w", err)
	}
	return x.Totals, nil
}

func (x *Exporter) write(ctx context.Context, tx *Tx, user string, w io.Writer) error {
	// Who reads the export may be slow.
	if _, err := tx.Exec(ctx, `SELECT set_config('statement_timeout', '0', true)`); err != nil {
		return err
	}
	totals := &Totals{}
	_, err := One(ctx, tx, `
		SELECT count(*), count(DISTINCT e.user_id)
		FROM {schema}.task_events e
		WHERE $1 = '' OR e.user_id = $1`, []any{user}, &totals.Events, &totals.Users)
	if err != nil {
		return err
	}
	var buf []byte
	err = tx.Query(ctx, `
		SELECT `+Columns+`, coalesce(e.idempotency_key, ''), e.request_fingerprint
		FROM {schema}.task_events e
		WHERE $1 = '' OR e.user_id = $1
		ORDER BY e.user_id, e.seq`, []any{user}, func(rows pgx.Rows) error {
		for rows.Next() {
			l := Line{Totals: totals}
			totals = nil // they stand with the first line
			var err error
			if l.Event, err = ScanEvent(rows, &l.IdempotencyKey, &l.Fingerprint); err != nil {
				return err
			}
			_, l.Skipped = l.Data.(Skipped)
			if buf, err = x.Append(buf, &l); err != nil {
				return err
			}
			if len(buf) < exportBuffer {
				continue
			}
			if _, err := w.Write(buf); err != nil {
				return err
			}
			buf = buf[:0]
		}
		return rows.Err()
	})
	if err != nil {
		return err
	}
	_, err = w.Write(buf)
	return err
}

// exported is a line of an export, for reading.
type exported struct {
	record
	Hash               Hash    `json:"hash"`
	IdempotencyKey     string  `json:"idempotency_key"`
	RequestFingerprint string  `json:"request_fingerprint"`
	Skipped            bool    `json:"skipped"`
	Export             *Totals `json:"export"`
}

// parseLine reads a line of an export, however its JSON is spelled. Written as this package writes it, it must say the
// same: so there is nothing in it that would be lost, or that could be read in two ways. It also returns its record.
// Data that this program cannot read comes as Unreadable.
func parseLine(text []byte) (l Line, record []byte, err error) {
	var in exported
	if err := json.Unmarshal(text, &in, json.RejectUnknownMembers(true)); err != nil {
		return l, nil, fmt.Errorf("is not a record: %w", err)
	}
	if l.Event, err = in.event(in.Skipped); err != nil {
		return l, nil, err
	}
	l.Hash, l.IdempotencyKey, l.Skipped, l.Totals = in.Hash, in.IdempotencyKey, in.Skipped, in.Export
	if l.Fingerprint, err = hex.DecodeString(in.RequestFingerprint); err != nil {
		return l, nil, fmt.Errorf("request_fingerprint: %w", err)
	}
	own := l.append(nil)
	if !bytes.Equal(own, text) {
		if member, err := differentMember(own, text); err != nil || member != "" {
			return l, nil, errors.Join(err, fmt.Errorf("%s is missing, or not in the form of a record", member))
		}
	}
	return l, l.AppendRecord(own[:0]), l.check()
}

// differentMember names a member that is not the same in two JSON objects; empty = they are the same.
func differentMember(a, b []byte) (string, error) {
	var members [2]map[string]jsontext.Value
	for i, text := range [][]byte{a, b} {
		if err := json.Unmarshal(text, &members[i]); err != nil {
			return "", err
		}
		for name, value := range members[i] {
			if err := value.Canonicalize(); err != nil {
				return "", err
			}
			members[i][name] = value
		}
	}
	for _, name := range slices.Sorted(maps.Keys(members[0])) {
		if !bytes.Equal(members[0][name], members[1][name]) {
			return name, nil
		}
		delete(members[1], name)
	}
	for name := range members[1] {
		return name, nil
	}
	return "", nil
}

// What the log can store: bytes of a user's id and of an idempotency key at most, of a fingerprint at least.
const (
	maxUser        = 255
	maxKey         = 255
	minFingerprint = 32
)

// check tells what the log could not store.
func (l *Line) check() error {
	switch {
	case l.UserID == "" || len(l.UserID) > maxUser:
		return fmt.Errorf("user_id must have 1 to %d bytes", maxUser)
	case l.Seq < 1:
		return errors.New("seq must be 1 or more")
	case l.version < 1 || l.version > math.MaxInt32:
		return fmt.Errorf("schema_version must be 1 to %d", math.MaxInt32)
	case l.RecordedAt.IsZero():
		return errors.New("recorded_at is missing")
	case (l.TaskID == uuid.Nil) != (l.Data.Type() == TypeUserErased):
		return errors.New("task_id must be null for an erasure, and only for one")
	case l.stored[0] != '{':
		return errors.New("data must be an object")
	case hasNUL(l.AppendRecord(nil)):
		return errors.New("U+0000 cannot be stored")
	case len(l.IdempotencyKey) > maxKey:
		return fmt.Errorf("idempotency_key must have 1 to %d bytes", maxKey)
	case (l.IdempotencyKey == "") != (len(l.Fingerprint) == 0),
		l.IdempotencyKey != "" && len(l.Fingerprint) < minFingerprint:
		return errors.New("idempotency_key and request_fingerprint do not go together")
	}
	return nil
}

// hasNUL tells whether a JSON text has the escape of U+0000 in it.
func hasNUL(text []byte) bool {
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		if bytes.HasPrefix(text[i:], []byte(`\u0000`)) {
			return true
		}
		i++ // what is escaped may be a backslash
	}
	return false
}
