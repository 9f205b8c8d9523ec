package events

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"
)

var (
	noon   = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	taskID = uuid.MustParse("0190a8f0-7a57-7000-8000-000000000001")
)

// stream numbers data as the events of one task, a minute apart.
func stream(data ...Data) []Event {
	out := make([]Event, len(data))
	for i, d := range data {
		out[i] = Event{
			UserID:     "u",
			Seq:        int64(i + 1),
			TaskID:     taskID,
			RecordedAt: noon.Add(time.Duration(i) * time.Minute),
			Data:       d,
		}
	}
	return out
}

func foldAll(events []Event) (t Task, err error) {
	for _, e := range events {
		if t, err = Fold(t, e); err != nil {
			return t, err
		}
	}
	return t, nil
}

func TestFold(t *testing.T) {
	t.Parallel()
	created := TaskCreated{Title: "a", Description: text("b")}
	at := func(minute int) time.Time { return noon.Add(time.Duration(minute) * time.Minute) }
	deleted := at(1)
	base := Task{UserID: "u", ID: taskID, Title: "a", Description: text("b"), CreatedAt: noon}
	for _, tc := range []struct {
		name  string
		given []Data
		want  func(Task) Task
	}{
		{"created", []Data{created}, func(t Task) Task { t.Version, t.UpdatedAt = 1, noon; return t }},
		{
			"renamed", []Data{created, TaskRenamed{"c"}},
			func(t Task) Task { t.Title, t.Version, t.UpdatedAt = "c", 2, at(1); return t },
		},
		{"description cleared", []Data{created, TaskDescribed{}}, func(t Task) Task {
			t.Description, t.Version, t.UpdatedAt = nil, 2, at(1)
			return t
		}},
		{
			"completed", []Data{created, TaskCompleted{}},
			func(t Task) Task { t.Completed, t.Version, t.UpdatedAt = true, 2, at(1); return t },
		},
		{
			"reopened", []Data{created, TaskCompleted{}, TaskReopened{}},
			func(t Task) Task { t.Version, t.UpdatedAt = 3, at(2); return t },
		},
		{
			"deleted", []Data{created, TaskDeleted{}},
			func(t Task) Task { t.DeletedAt, t.Version, t.UpdatedAt = &deleted, 2, at(1); return t },
		},
		{
			"skipped", []Data{created, Skipped{TypeTaskDeleted}},
			func(t Task) Task { t.Version, t.UpdatedAt = 1, noon; return t },
		},
		{
			"restored", []Data{created, TaskDeleted{}, TaskRestored{}},
			func(t Task) Task { t.Version, t.UpdatedAt = 3, at(2); return t },
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := foldAll(stream(tc.given...))
			if want := tc.want(base); err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("got %+v, %v\nwant %+v", got, err, want)
			}
		})
	}
}

func TestFoldRefusesWhatCannotFollow(t *testing.T) {
	t.Parallel()
	created := TaskCreated{Title: "a"}
	for name, given := range map[string][]Data{
		"created twice":         {created, created},
		"renamed before":        {TaskRenamed{"c"}},
		"completed when gone":   {created, TaskDeleted{}, TaskCompleted{}},
		"deleted twice":         {created, TaskDeleted{}, TaskDeleted{}},
		"restored when live":    {created, TaskRestored{}},
		"restored before":       {TaskRestored{}},
		"created after deleted": {created, TaskDeleted{}, created},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var refused *FoldError
			if _, err := foldAll(stream(given...)); !errors.As(err, &refused) || refused.Seq != int64(len(given)) {
				t.Fatalf("got %v, want the last event refused", err)
			}
		})
	}
	t.Run("an old seq", func(t *testing.T) {
		t.Parallel()
		e := stream(created, TaskCompleted{})
		e[1].Seq = 1
		var refused *FoldError
		if _, err := foldAll(e); !errors.As(err, &refused) {
			t.Fatalf("got %v", err)
		}
	})
}
