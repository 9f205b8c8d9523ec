package events

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

func text(s string) *string { return &s }

// frozen are the samples of testdata and what they mean today. Files are only ever added: what was stored once must be
// read for ever. A file is named <type>.v<schema version>[.<what is special>].json.
var frozen = map[string]Data{
	"TaskCreated.v1.json": TaskCreated{
		Title:       "Buy milk",
		Description: text(`two litres, "whole" – 牛乳 <&>`),
	},
	"TaskCreated.v1.no_description.json": TaskCreated{Title: "Buy milk"},
	"TaskRenamed.v1.json":                TaskRenamed{Title: "Buy oat milk 🥛"},
	"TaskDescribed.v1.json":              TaskDescribed{Description: text("from the corner shop")},
	"TaskDescribed.v1.cleared.json":      TaskDescribed{},
	"TaskCompleted.v1.json":              TaskCompleted{},
	"TaskReopened.v1.json":               TaskReopened{},
	"TaskDeleted.v1.json":                TaskDeleted{},
	"TaskRestored.v1.json":               TaskRestored{},
	"TaskImported.v1.json": TaskImported{
		CreatedAt: time.Date(
			2024,
			2,
			29,
			23,
			59,
			59,
			123456000,
			time.UTC,
		),
		Description: text("two litres"),
		Completed:   true,
		Title:       "Buy milk",
		UpdatedAt:   time.Date(2024, 3, 1, 0, 0, 0, 0, time.UTC),
	},
	"TaskImported.v1.cut.json": TaskImported{
		CreatedAt: time.Date(2024, 2, 29, 23, 59, 59, 123456000, time.UTC), Description: text("two lit"),
		FullDescription: text("two litres"), FullTitle: text("Buy milk"), Title: "Buy",
		UpdatedAt: time.Date(2024, 2, 29, 23, 59, 59, 123456000, time.UTC),
	},
	"UserErased.v1.json": UserErased{Hash: Hash(bytes.Repeat([]byte{10}, 32))},
}

func sampleForm(t *testing.T, name string) form {
	t.Helper()
	parts := strings.Split(name, ".")
	version, err := strconv.Atoi(strings.TrimPrefix(parts[1], "v"))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return form{Type(parts[0]), version}
}

// form names one stored form: what is in the columns type and schema_version.
type form struct {
	Type    Type
	Version int
}

func TestEveryStoredFormDecodesForEver(t *testing.T) {
	t.Parallel()
	for _, fault := range faults(t, codec, frozen, "testdata") {
		t.Error(fault)
	}
}

// faults are what is wrong with a codec, by the samples in a folder and what they mean.
func faults(t *testing.T, codec map[Type]forms, samples map[string]Data, dir string) (found []string) {
	t.Helper()
	fault := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	files, err := filepath.Glob(dir + "/*.json")
	if err != nil || len(files) != len(samples) {
		fault("%d samples in %s (%v), %d known", len(files), dir, err, len(samples))
	}
	sampled := map[form]bool{}
	for name, want := range samples {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		f := sampleForm(t, name)
		sampled[f] = true
		got, err := codec[f.Type].decode(f.Type, f.Version, data)
		if err != nil || !reflect.DeepEqual(got, want) {
			fault("%s: got %#v, %v; want %#v", name, got, err, want)
		}
	}
	for typ, forms := range codec {
		for version := 1; version <= max(forms.current, len(forms.decoders)); version++ {
			if forms.decoders[version] == nil {
				fault("%s version %d can't be read", typ, version)
			} else if !sampled[form{typ, version}] {
				fault("%s version %d has no frozen sample", typ, version)
			}
		}
		if forms.current != len(forms.decoders) {
			fault("%s writes version %d and reads %d versions", typ, forms.current, len(forms.decoders))
		}
	}
	return found
}

// A program that lacks what reads a form of the past does not pass.
func TestAFormOfThePastThatIsLeftOutIsFound(t *testing.T) {
	t.Parallel()
	whole := map[Type]forms{TypeTaskRenamed: renamedTwice}
	if found := faults(t, whole, renamedSamples, "testdata/example"); len(found) > 0 {
		t.Errorf("nothing is missing: %q", found)
	}
	for name, tc := range map[string]struct {
		codec forms
		fault string
	}{
		"no upcaster":      {forms{2, decoders{2: decode[TaskRenamed]}}, "version 1 can't be read"},
		"an old form only": {forms{2, decoders{1: renamedTwice.decoders[1]}}, "version 2 can't be read"},
		"the wrong one": {
			forms{2, decoders{1: decode[TaskRenamed], 2: decode[TaskRenamed]}}, "TaskRenamed.v1.json: got",
		},
		"a version to come": {
			forms{2, decoders{1: renamedTwice.decoders[1], 2: decode[TaskRenamed], 3: decode[TaskRenamed]}},
			"no frozen sample",
		},
		"not written": {forms{1, renamedTwice.decoders}, "writes version 1 and reads 2"},
	} {
		found := faults(t, map[Type]forms{TypeTaskRenamed: tc.codec}, renamedSamples, "testdata/example")
		if !strings.Contains(strings.Join(found, "\n"), tc.fault) {
			t.Errorf("%s: got %q, want %q", name, found, tc.fault)
		}
	}
}

// Each type is in every table of types: it can be stored and read, and the fold knows what it means.
func TestEveryTypeIsInEveryTable(t *testing.T) {
	t.Parallel()
	if len(codec) != len(Types()) {
		t.Errorf("the codec knows %d types of %d", len(codec), len(Types()))
	}
	deleted := noon
	states := []Task{{}, {Version: 1}, {Version: 1, DeletedAt: &deleted}}
	folded := map[Type]bool{}
	for name, data := range frozen {
		for _, state := range states {
			after, err := Fold(state, Event{Seq: 2, Data: data})
			if err == nil && after.Version != state.Version {
				folded[data.Type()] = true
			}
		}
		if got := sampleForm(t, name).Type; got != data.Type() {
			t.Errorf("%s is a sample of a %s", name, data.Type())
		}
	}
	for _, typ := range Types() {
		if !folded[typ] {
			t.Errorf("%s: there is no state that it can follow", typ)
		}
		if codec[typ].current == 0 {
			t.Errorf("%s: the codec does not know it", typ)
		}
	}
}

func TestTodaysFormIsTheSample(t *testing.T) {
	t.Parallel()
	for name, data := range frozen {
		f := sampleForm(t, name)
		if f.Version != codec[f.Type].current {
			continue
		}
		sample, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		want := jsontext.Value(sample)
		if err := want.Canonicalize(); err != nil {
			t.Fatal(err)
		}
		e := Event{Data: data}
		if err := e.encode(); err != nil || e.version != f.Version || string(e.stored) != string(want) {
			t.Errorf("%s: stored as version %d %s (%v), want %s", name, e.version, e.stored, err, want)
		}
	}
}

func TestWhatCannotBeReadIsNotGuessed(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		typ     Type
		version int
		data    string
		unknown bool
	}{
		{"a type from the future", "TaskArchived", 1, `{}`, true},
		{"a version from the future", TypeTaskCreated, 2, `{"title":"x","description":null}`, true},
		{"a member from the future", TypeTaskRenamed, 1, `{"title":"x","colour":"red"}`, false},
		{"a wrong kind", TypeTaskRenamed, 1, `{"title":5}`, false},
		{"not an object", TypeTaskCompleted, 1, `[]`, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, err := Decode(tc.typ, tc.version, []byte(tc.data))
			if err == nil || errors.Is(err, ErrUnknownForm) != tc.unknown {
				t.Fatalf("got %v, want an error, of an unknown form: %t", err, tc.unknown)
			}
			e := Event{Seq: 2}
			if err := e.read(tc.typ, tc.version, []byte(tc.data), false); err != nil {
				t.Fatal(err)
			}
			if _, ok := e.Data.(Unreadable); !ok || e.Data.Type() != tc.typ {
				t.Fatalf("read as %#v", e.Data)
			}
			var refused *FoldError
			if _, err := Fold(Task{Version: 1}, e); !errors.As(err, &refused) || refused.Unknown != tc.unknown {
				t.Fatalf("folded: %v", err)
			}
		})
	}
}
