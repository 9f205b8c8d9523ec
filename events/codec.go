package events

import (
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// ErrUnknownForm is returned for an event whose type or schema version this program does not know: one of a newer
// program.
var ErrUnknownForm = errors.New("unknown stored form of an event")

// forms are the stored forms of one type.
type forms struct {
	// current is the schema version that is written.
	current int
	// decoders read each version ever written: today's by decode, an older one by upcast.
	decoders decoders
}

// codec knows every stored form ever written. A type whose form changes gets a higher current version and a frozen
// sample of it in testdata, and what read its form until then becomes an upcast from the struct of that time. What is
// stored stays as it is, for the chain of hashes is over it.
var codec = map[Type]forms{
	TypeTaskCreated:   {1, decoders{1: decode[TaskCreated]}},
	TypeTaskRenamed:   {1, decoders{1: decode[TaskRenamed]}},
	TypeTaskDescribed: {1, decoders{1: decode[TaskDescribed]}},
	TypeTaskCompleted: {1, decoders{1: decode[TaskCompleted]}},
	TypeTaskReopened:  {1, decoders{1: decode[TaskReopened]}},
	TypeTaskDeleted:   {1, decoders{1: decode[TaskDeleted]}},
	TypeTaskRestored:  {1, decoders{1: decode[TaskRestored]}},
	TypeTaskImported:  {1, decoders{1: decode[TaskImported]}},
	TypeUserErased:    {1, decoders{1: decode[UserErased]}},
}

type decoders = map[int]func([]byte) (Data, error)

// encode makes the stored form of the event's Data.
func (e *Event) encode() error {
	stored, err := json.Marshal(e.Data)
	if err != nil {
		return fmt.Errorf("encode %s: %w", e.Data.Type(), err)
	}
	e.version, e.stored = codec[e.Data.Type()].current, stored
	return nil
}

// read takes a stored form. What this program can't read becomes Unreadable; what an operator has had passed over,
// Skipped.
func (e *Event) read(t Type, version int, data []byte, skipped bool) error {
	stored := jsontext.Value(data).Clone()
	if err := stored.Canonicalize(); err != nil {
		return fmt.Errorf("read the data of a %s: %w", t, err)
	}
	e.version, e.stored = version, stored
	if skipped {
		e.Data = Skipped{Stored: t}
		return nil
	}
	var err error
	if e.Data, err = Decode(t, version, stored); err != nil {
		e.Data = Unreadable{Stored: t, Err: err}
	}
	return nil
}

// Decode reads a stored form back. It returns ErrUnknownForm for a type or version it does not know.
func Decode(t Type, version int, data []byte) (Data, error) {
	return codec[t].decode(t, version, data)
}

func (f forms) decode(t Type, version int, data []byte) (Data, error) {
	read, ok := f.decoders[version]
	if !ok {
		return nil, fmt.Errorf("%w: %s version %d", ErrUnknownForm, t, version)
	}
	d, err := read(data)
	if err != nil {
		return nil, fmt.Errorf("decode %s version %d: %w", t, version, err)
	}
	return d, nil
}

// Unreadable stands for an event whose stored form could not be read: of a newer program (ErrUnknownForm), or damaged.
// Fold refuses it. It cannot be stored.
type Unreadable struct {
	Stored Type
	Err    error
}

// Type implements Data.
func (u Unreadable) Type() Type { return u.Stored }

// Skipped stands for an event that an operator has had passed over: it changes nothing. It cannot be stored.
type Skipped struct {
	Stored Type
}

// Type implements Data.
func (s Skipped) Type() Type { return s.Stored }

// upcast reads a form of the past into the struct that it had then, and makes of that what is meant today.
func upcast[Old any, Today Data](today func(Old) Today) func([]byte) (Data, error) {
	return func(data []byte) (Data, error) {
		var old Old
		if err := json.Unmarshal(data, &old, json.RejectUnknownMembers(true)); err != nil {
			return nil, err
		}
		return today(old), nil
	}
}

func decode[T Data](data []byte) (Data, error) {
	var d T
	if err := json.Unmarshal(data, &d, json.RejectUnknownMembers(true)); err != nil {
		return nil, err
	}
	return d, nil
}
