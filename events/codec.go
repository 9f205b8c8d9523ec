package events

import (
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
)

// ErrUnknownForm is returned for an event whose type or schema version this program does not know: one from the future.
var ErrUnknownForm = errors.New("unknown stored form of an event")

// form names one stored form: what is in the columns type and schema_version.
type form struct {
	Type    Type
	Version int
}

// currentVersion is the schema version that Encode writes. A type that changes its stored form gets a higher one here, keeps
// its old decoders below, and adds a frozen sample to testdata.
const currentVersion = 1

// decoders know every stored form ever written. A decoder of an old version upcasts: it returns today's Data.
var decoders = map[form]func([]byte) (Data, error){
	{TypeTaskCreated, 1}:   decode[TaskCreated],
	{TypeTaskRenamed, 1}:   decode[TaskRenamed],
	{TypeTaskDescribed, 1}: decode[TaskDescribed],
	{TypeTaskCompleted, 1}: decode[TaskCompleted],
	{TypeTaskReopened, 1}:  decode[TaskReopened],
	{TypeTaskDeleted, 1}:   decode[TaskDeleted],
	{TypeTaskRestored, 1}:  decode[TaskRestored],
}

// Encode gives the stored form of d: the columns schema_version and data (a JSON object).
func Encode(d Data) (version int, data []byte, err error) {
	data, err = json.Marshal(d)
	if err != nil {
		return 0, nil, fmt.Errorf("encode %s: %w", d.Type(), err)
	}
	return currentVersion, data, nil
}

// Read reads a stored form back. What cannot be read comes as Unreadable; what an operator has told to pass over, as Skipped.
func Read(t Type, version int, data []byte, skipped bool) Data {
	if skipped {
		return Skipped{Stored: t}
	}
	d, err := Decode(t, version, data)
	if err != nil {
		return Unreadable{Stored: t, Err: err}
	}
	return d
}

// Decode reads a stored form back. It returns ErrUnknownForm for a type or version it does not know.
func Decode(t Type, version int, data []byte) (Data, error) {
	f, ok := decoders[form{t, version}]
	if !ok {
		return nil, fmt.Errorf("%w: %s version %d", ErrUnknownForm, t, version)
	}
	d, err := f(data)
	if err != nil {
		return nil, fmt.Errorf("decode %s version %d: %w", t, version, err)
	}
	return d, nil
}

// Unreadable stands for an event whose stored form could not be read: from the future, or damaged. Fold refuses it, so it stops
// its user's stream and nothing else. It cannot be stored.
type Unreadable struct {
	Stored Type
	Err    error
}

// Type implements Data.
func (u Unreadable) Type() Type { return u.Stored }

// Skipped stands for an event that an operator has told to pass over: it changes nothing. It cannot be stored.
type Skipped struct {
	Stored Type
}

// Type implements Data.
func (s Skipped) Type() Type { return s.Stored }

func decode[T Data](data []byte) (Data, error) {
	var d T
	if err := json.Unmarshal(data, &d, json.RejectUnknownMembers(true)); err != nil {
		return nil, err
	}
	return d, nil
}
