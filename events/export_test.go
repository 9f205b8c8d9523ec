package events

import "testing"

// The worked example of an event that changes its form: TaskRenamed as if it had had its title in a member "name" until
// version 2. Its samples are in testdata/example.

// taskRenamed1 is the struct of version 1, kept to read it.
type taskRenamed1 struct {
	Name string `json:"name"`
}

var renamedTwice = forms{2, decoders{
	1: upcast(func(old taskRenamed1) TaskRenamed { return TaskRenamed{Title: old.Name} }),
	2: decode[TaskRenamed],
}}

var renamedSamples = map[string]Data{
	"TaskRenamed.v1.json": TaskRenamed{Title: "Buy oat milk"},
	"TaskRenamed.v2.json": TaskRenamed{Title: "Buy oat milk"},
}

// RenameTwice makes this program one that has the worked example in its codec, until the end of the test. While it
// lasts there is no other test: it must not be parallel.
func RenameTwice(t *testing.T) {
	before := codec[TypeTaskRenamed]
	codec[TypeTaskRenamed] = renamedTwice
	t.Cleanup(func() { codec[TypeTaskRenamed] = before })
}

// SchemaVersion is that of the stored form.
func (e *Event) SchemaVersion() int { return e.version }
