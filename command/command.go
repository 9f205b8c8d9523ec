// Package command decides. A command is a small struct in the imperative; decide is pure: what is known of the user's
// stream and a command give the events, or the reason why not. The Handler loads what a decision needs, decides,
// appends, and decides again when another writer was first.
package command

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"taskledger/events"
)

// Limits of a task's texts, in Unicode code points.
const (
	MaxTitle       = 100
	MaxDescription = 1000
)

// Command is what a user can ask for. The types of this package are all there are.
type Command interface {
	// name is what the command is called in fingerprints, which are stored.
	name() string
	// about is the task that the decision needs to know; nil = none.
	about() *uuid.UUID
	decide(s *stream, match Match) (decision, error)
}

// CreateTask makes a new task. Its ID is made by the server and is no part of what was asked for, unless it is what the
// client chose.
type CreateTask struct {
	ID          uuid.UUID  `json:"-"`
	Chosen      *uuid.UUID `json:",omitzero"` // the same as ID
	Title       string
	Description *string
	Completed   bool
}

// UpdateTask changes what is given. Nil keeps; a Description that points to nil clears.
type UpdateTask struct {
	ID          uuid.UUID
	Title       *string  `json:",omitzero"`
	Description **string `json:",omitzero"`
	Completed   *bool    `json:",omitzero"`
}

// ToggleTask completes an open task and reopens a completed one.
type ToggleTask struct{ ID uuid.UUID }

// CompleteTask completes a task; one that is completed stays as it is.
type CompleteTask struct{ ID uuid.UUID }

// ReopenTask reopens a task; one that is open stays as it is.
type ReopenTask struct{ ID uuid.UUID }

// DeleteTask moves a task to the trash.
type DeleteTask struct{ ID uuid.UUID }

// RestoreTask brings a task back from the trash as it was.
type RestoreTask struct{ ID uuid.UUID }

// RevertTask gives a task the texts and the completion that it had as of a seq of the user, by new events.
type RevertTask struct {
	ID      uuid.UUID
	Version int64

	then *events.Task // the task as of Version; nil = the user's stream has not come that far
}

// Step is one of several commands that are carried out together, each on what those before it left.
type Step struct {
	Command Command
	Match   Match
}

// Match is a condition on the task's version (If-Match of RFC 9110, section 13.1.1). The zero Match is no condition.
type Match struct {
	Present  bool
	Any      bool    // `*`: whatever its version, if it is there
	Versions []int64 // one of these
}

func (m Match) allows(version int64) bool {
	if !m.Present || m.Any {
		return true
	}
	for _, v := range m.Versions {
		if v == version {
			return true
		}
	}
	return false
}

// Errors of a decision.
var (
	// ErrNotFound: there is no such live task in the user's stream.
	ErrNotFound = errors.New("task not found")
	// ErrLive: the task that is to be restored is not deleted.
	ErrLive = errors.New("the task is not deleted")
	// ErrNotThen: the task was not there, or deleted, as of the version that it is to be reverted to, or there is no
	// such version yet.
	ErrNotThen = errors.New("there was no such live task at that version")
	// ErrExists: there is, or was, a task with the chosen id.
	ErrExists = errors.New("there is a task with this id already")
	// ErrKeyReused: the idempotency key was used for another request.
	ErrKeyReused = errors.New("the idempotency key was used for another request")
	// ErrContended: other writers were first, time and again; nothing was stored.
	ErrContended = errors.New("too many writers on one stream")
)

// PreconditionError says that the task is not at a version the command named.
type PreconditionError struct {
	Current int64
}

// Error implements error.
func (e *PreconditionError) Error() string {
	return fmt.Sprintf("the task is at version %d", e.Current)
}

// StepError says which of several commands cannot be carried out, and why.
type StepError struct {
	Index int // from 0
	Err   error
}

// Error implements error.
func (e *StepError) Error() string { return fmt.Sprintf("command %d: %v", e.Index, e.Err) }

// Unwrap gives the reason.
func (e *StepError) Unwrap() error { return e.Err }

// QuotaError says that the user has as many live tasks as allowed.
type QuotaError struct {
	Limit int
}

// Error implements error.
func (e *QuotaError) Error() string {
	return fmt.Sprintf("a user can have %d tasks", e.Limit)
}

// FieldError says what is wrong with one member of a command.
type FieldError struct {
	Field  string // the JSON name of the member
	Code   string // a stable key
	Detail string
}

// CheckTitle returns what is wrong with a title, or nil.
func CheckTitle(title string) *FieldError {
	wrong := func(code, detail string) *FieldError { return &FieldError{Field: "title", Code: code, Detail: detail} }
	switch n := utf8.RuneCountInString(title); {
	case n == 0:
		return wrong("too_short", fmt.Sprintf("must have 1 to %d characters", MaxTitle))
	case n > MaxTitle:
		return wrong("too_long", fmt.Sprintf("must have 1 to %d characters", MaxTitle))
	case hasNUL(title):
		return wrong("invalid_character", "must not have U+0000")
	case isBlank(title):
		return wrong("blank", "must have a visible character")
	}
	return nil
}

// CheckDescription returns what is wrong with a description, or nil.
func CheckDescription(description string) *FieldError {
	wrong := func(code, detail string) *FieldError {
		return &FieldError{Field: "description", Code: code, Detail: detail}
	}
	switch {
	case utf8.RuneCountInString(description) > MaxDescription:
		return wrong("too_long", fmt.Sprintf("must have 0 to %d characters", MaxDescription))
	case hasNUL(description):
		return wrong("invalid_character", "must not have U+0000")
	}
	return nil
}

// hasNUL: PostgreSQL stores every Unicode text but those with U+0000.
func hasNUL(s string) bool { return strings.IndexByte(s, 0) >= 0 }

// isBlank tells that nothing of a text can be seen: it is white space, controls, and characters that are shown as
// nothing (Default_Ignorable_Code_Point of Unicode: format characters such as U+200B, variation selectors, fillers).
func isBlank(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !unicode.IsSpace(r) && !unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Zs,
			unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
	})
}
