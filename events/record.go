package events

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
)

// TimeLayout is RFC 3339 in UTC with microseconds, which is what PostgreSQL keeps.
const TimeLayout = "2006-01-02T15:04:05.000000Z"

// AppendTime appends a time in the TimeLayout. Package time takes three times as long for a layout that is not its own.
func AppendTime(b []byte, t time.Time) []byte {
	b = t.UTC().AppendFormat(b, time.RFC3339)
	b[len(b)-1] = '.' // in place of the Z
	micros := t.Nanosecond() / 1000
	for unit := 100_000; unit > 0; unit /= 10 {
		b = append(b, byte('0'+micros/unit%10))
	}
	return append(b, 'Z')
}

// AppendRecord appends an event as it is stored, in JSON: the payload of a Watermill message, a line of an export, and
// what the hash chain is over. Its form is canonical (RFC 8785): members in order, no white space. The event was
// stored, or is to be stored as it is: all of it is known.
func (e *Event) AppendRecord(b []byte) []byte {
	b = slices.Grow(b, 384+len(e.stored)+2*len(e.UserID)+len(e.RequestID))
	b = append(b, `{"actor":`...)
	b = AppendText(b, e.Actor)
	b = append(b, `,"command_id":"`...)
	b = appendID(b, e.CommandID)
	b = append(b, `","data":`...)
	b = append(b, e.stored...)
	b = append(b, `,"event_id":"`...)
	b = appendID(b, e.EventID)
	b = append(b, `","recorded_at":"`...)
	b = AppendTime(b, e.RecordedAt)
	b = append(b, `","request_id":`...)
	b = AppendText(b, e.RequestID)
	b = append(b, `,"schema_version":`...)
	b = strconv.AppendInt(b, int64(e.version), 10)
	b = append(b, `,"seq":`...)
	b = strconv.AppendInt(b, e.Seq, 10)
	b = append(b, `,"task_id":`...)
	if e.TaskID == uuid.Nil {
		b = append(b, `null`...)
	} else {
		b = append(appendID(append(b, '"'), e.TaskID), '"')
	}
	b = append(b, `,"type":`...)
	b = AppendText(b, string(e.Data.Type()))
	b = append(b, `,"user_id":`...)
	b = AppendText(b, e.UserID)
	return append(b, '}')
}

// Record is what AppendRecord appends; it may be written into buf.
func (e *Event) Record(buf []byte) []byte {
	if e.record != nil {
		return e.record
	}
	return e.AppendRecord(buf[:0])
}

// record is an event as stored, for reading.
type record struct {
	Actor         string         `json:"actor"`
	CommandID     uuid.UUID      `json:"command_id"`
	Data          jsontext.Value `json:"data"`
	EventID       uuid.UUID      `json:"event_id"`
	RecordedAt    time.Time      `json:"recorded_at"`
	RequestID     string         `json:"request_id"`
	SchemaVersion int            `json:"schema_version"`
	Seq           int64          `json:"seq"`
	TaskID        *uuid.UUID     `json:"task_id"`
	Type          Type           `json:"type"`
	UserID        string         `json:"user_id"`
}

// ParseRecord reads what AppendRecord wrote. Data that this program cannot read comes as Unreadable.
func ParseRecord(text []byte) (Event, error) {
	var r record
	if err := json.Unmarshal(text, &r, json.RejectUnknownMembers(true)); err != nil {
		return Event{}, fmt.Errorf("read a record: %w", err)
	}
	return r.event(false)
}

func (r *record) event(skipped bool) (Event, error) {
	e := Event{
		UserID:     r.UserID,
		Seq:        r.Seq,
		EventID:    r.EventID,
		CommandID:  r.CommandID,
		Actor:      r.Actor,
		RequestID:  r.RequestID,
		RecordedAt: r.RecordedAt.UTC(),
	}
	if r.TaskID != nil {
		e.TaskID = *r.TaskID
	}
	return e, e.read(r.Type, r.SchemaVersion, r.Data, skipped)
}

// Hash is a link of a user's chain: the SHA-256 of the link before, 32 zero bytes before the first, and the record.
// testdata/chain has it worked out, and vectors.
type Hash [sha256.Size]byte

// Next is the link of the record that follows.
func (h Hash) Next(record []byte) Hash {
	sum := sha256.New()
	sum.Write(h[:])
	sum.Write(record)
	var next Hash
	sum.Sum(next[:0])
	return next
}

// Link is the event's link of its user's chain, behind the link before. An erasure brings that one along. The record
// may be written into buf, which is returned: never a record that is there, which would keep a whole batch in memory.
func (e *Event) Link(before Hash, buf []byte) (Hash, []byte) {
	if d, ok := e.Data.(UserErased); ok {
		before = d.Hash
	}
	record := e.Record(buf)
	if e.record == nil {
		buf = record
	}
	return before.Next(record), buf
}

// String is the link in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(h) {
		return fmt.Errorf("a hash has %d hexadecimal digits, not %d", hex.EncodedLen(len(h)), len(text))
	}
	_, err := hex.Decode(h[:], text)
	return err
}

// AppendText appends a JSON string in its shortest form (RFC 8785, section 3.2.2.2). The text is valid UTF-8: no other
// gets in.
func AppendText(b []byte, s string) []byte {
	quoted, err := jsontext.AppendQuote(b, s)
	if err != nil {
		panic(err) // only of text that is not UTF-8, which neither a request nor PostgreSQL lets through
	}
	return quoted
}

// appendID appends the 36 characters of a UUID.
func appendID(b []byte, id uuid.UUID) []byte {
	const digits = "0123456789abcdef"
	for i, octet := range id {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b = append(b, '-')
		}
		b = append(b, digits[octet>>4], digits[octet&15])
	}
	return b
}
