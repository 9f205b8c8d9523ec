package events

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

func text(s string) *string { return &s }

// frozen are the samples of testdata and what they mean today. Files are only ever added: what was stored once must be read for
// ever. A file is named <type>.v<schema version>[.<what is special>].json.
var frozen = map[string]Data{
	"TaskCreated.v1.json":                TaskCreated{Title: "Buy milk", Description: text(`two litres, "whole" – 牛乳 <&>`)},
	"TaskCreated.v1.no_description.json": TaskCreated{Title: "Buy milk"},
	"TaskRenamed.v1.json":                TaskRenamed{Title: "Buy oat milk 🥛"},
	"TaskDescribed.v1.json":              TaskDescribed{Description: text("from the corner shop")},
	"TaskDescribed.v1.cleared.json":      TaskDescribed{},
	"TaskCompleted.v1.json":              TaskCompleted{},
	"TaskReopened.v1.json":               TaskReopened{},
	"TaskDeleted.v1.json":                TaskDeleted{},
	"TaskRestored.v1.json":               TaskRestored{},
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

func TestEveryStoredFormDecodesForEver(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) != len(frozen) {
		t.Fatalf("%d samples in testdata (%v), %d known", len(files), err, len(frozen))
	}
	sampled := map[form]bool{}
	for _, file := range files {
		name := filepath.Base(file)
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		f := sampleForm(t, name)
		sampled[f] = true
		got, err := Decode(f.Type, f.Version, data)
		if err != nil || !reflect.DeepEqual(got, frozen[name]) {
			t.Errorf("%s: got %#v, %v; want %#v", name, got, err, frozen[name])
		}
	}
	for f := range decoders {
		if !sampled[f] {
			t.Errorf("%s version %d has no frozen sample", f.Type, f.Version)
		}
	}
	for _, typ := range Types() {
		if !sampled[form{typ, currentVersion}] {
			t.Errorf("%s has no sample of today's form", typ)
		}
	}
}

func TestTodaysFormIsTheSample(t *testing.T) {
	t.Parallel()
	for name, data := range frozen {
		f := sampleForm(t, name)
		if f.Version != currentVersion {
			continue
		}
		want, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		version, got, err := Encode(data)
		if err != nil || version != currentVersion || string(got) != strings.TrimSpace(string(want)) {
			t.Errorf("%s: stored as version %d %s (%v), want %s", name, version, got, err, want)
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
			read, ok := Read(tc.typ, tc.version, []byte(tc.data), false).(Unreadable)
			if !ok || read.Type() != tc.typ {
				t.Fatalf("read as %#v", read)
			}
			var refused *FoldError
			if _, err := Fold(Task{Version: 1}, Event{Seq: 2, Data: read}); !errors.As(err, &refused) {
				t.Fatalf("fold took it: %v", err)
			}
		})
	}
}
