package events

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
)

// maxLine bounds a line of an export, in bytes.
const maxLine = 64 << 20

// Audit checks an export, of one user or of many. What it holds an export to is all in this file:
//
//   - a line is one event in JSON: the eleven members of its record, and its hash;
//   - the lines of a user stand together, and their seq is 1, 2, 3, … without gaps; but who was erased begins with
//     the erasure;
//   - the hash of a line is SHA-256(the hash before, 32 bytes, followed by the record in the form of RFC 8785). Before
//     seq 1 there are 32 zero bytes; an erasure has the hash before in its data;
//   - recorded_at never runs backwards;
//   - an operator's export says with its first line how many events of how many users it has.
//
// So who kept the hash of one line, and finds it at the same seq in an export that passes, knows that nothing up to it
// was changed, left out or put in.
type Audit struct {
	Totals // of the lines read so far

	lines *bufio.Scanner
	line  int64 // the number of the line read last
	seen  map[string]bool
	says  *Totals // how much there is in the export, by its own word; nil = it does not say

	// Of the user whose lines are being read:
	user     string
	seq      int64
	hash     Hash
	recorded time.Time
	command  uuid.UUID
	keys     map[string]bool
}

// LineError tells which line of an export is wrong, and why.
type LineError struct {
	Line int64 // from 1
	Err  error
}

// Error implements error.
func (e *LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }

// Unwrap gives the reason.
func (e *LineError) Unwrap() error { return e.Err }

// NewAudit returns an Audit of an export that has not been read yet.
func NewAudit(export io.Reader) *Audit {
	a := &Audit{lines: bufio.NewScanner(export), seen: map[string]bool{}}
	a.lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	return a
}

// Next returns the next line, io.EOF behind the last one, and a *LineError for the first one that is wrong.
func (a *Audit) Next() (Line, error) {
	a.line++
	if !a.lines.Scan() {
		switch err := a.lines.Err(); {
		case err == nil && a.says != nil && *a.says != a.Totals:
			return Line{}, a.wrong(fmt.Errorf(
				"the export ends here, after %d events of %d users, but says that it has %d of %d",
				a.Events, a.Users, a.says.Events, a.says.Users))
		case err == nil:
			return Line{}, io.EOF
		case errors.Is(err, bufio.ErrTooLong):
			return Line{}, a.wrong(fmt.Errorf("has more than %d bytes", maxLine))
		default:
			return Line{}, fmt.Errorf("read the export: %w", err)
		}
	}
	l, record, err := parseLine(a.lines.Bytes())
	if err != nil {
		return l, a.wrong(err)
	}
	if err := a.check(&l, record); err != nil {
		return l, a.wrong(err)
	}
	a.Events++
	l.Number = a.line
	a.count(l.Totals)
	return l, nil
}

// count takes note of how much there should be; several exports, one behind the other, are one too.
func (a *Audit) count(says *Totals) {
	if says == nil {
		return
	}
	if a.says == nil {
		a.says = &Totals{}
	}
	a.says.Events += says.Events
	a.says.Users += says.Users
}

// Whole tells, behind the last line, whether nothing is missing behind it. A user's own export does not say how much
// there should be.
func (a *Audit) Whole() bool { return a.says != nil }

func (a *Audit) wrong(err error) error { return &LineError{Line: a.line, Err: err} }

// Has tells whether a user is among the lines read so far.
func (a *Audit) Has(user string) bool { return a.seen[user] }

// Head is the last seq of the user whose line was read last, and its hash.
func (a *Audit) Head() (user string, seq int64, hash Hash) { return a.user, a.seq, a.hash }

// check holds a line against the one before.
func (a *Audit) check(l *Line, record []byte) error {
	erasure, erased := l.Data.(UserErased)
	begins := a.Users == 0 || l.UserID != a.user
	before := a.hash
	switch {
	case begins && a.seen[l.UserID]:
		return fmt.Errorf("user %q has lines further up, and another user's are between", l.UserID)
	case begins && erased && l.Seq > 1:
		before = erasure.Hash
	case begins && !erased && l.Seq == 1:
		before = Hash{}
	case begins:
		return fmt.Errorf("the stream of user %q begins with seq %d: it must begin with seq 1, or with an erasure",
			l.UserID, l.Seq)
	case l.Seq != a.seq+1:
		return fmt.Errorf("seq %d follows seq %d of user %q", l.Seq, a.seq, l.UserID)
	case erased:
		return fmt.Errorf("user %q was erased at seq %d, but events before that are there", l.UserID, l.Seq)
	case l.RecordedAt.Before(a.recorded):
		return fmt.Errorf("recorded_at runs backwards at seq %d of user %q", l.Seq, l.UserID)
	}
	if hash := before.Next(record); hash != l.Hash {
		return fmt.Errorf(
			"the hash of seq %d of user %q is not the one that follows: the record or the hash was changed",
			l.Seq,
			l.UserID,
		)
	}
	if begins {
		a.seen[l.UserID] = true
		a.Users++
		a.keys = map[string]bool{}
	}
	if err := a.checkKey(l, !begins && l.CommandID == a.command); err != nil {
		return err
	}
	a.user, a.seq, a.hash, a.recorded, a.command = l.UserID, l.Seq, l.Hash, l.RecordedAt, l.CommandID
	return nil
}

// checkKey holds an idempotency key, which an operator's export has, against those before.
func (a *Audit) checkKey(l *Line, sameCommand bool) error {
	switch key := l.IdempotencyKey; {
	case key == "":
		return nil
	case a.keys[key]:
		return fmt.Errorf("idempotency_key is used twice by user %q", l.UserID)
	case sameCommand:
		return errors.New("idempotency_key stands at an event that is not the first of its command")
	default:
		a.keys[key] = true
		return nil
	}
}
