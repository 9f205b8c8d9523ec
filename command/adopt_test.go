package command

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"taskledger/events"
)

func TestTextsOfOldTasks(t *testing.T) {
	t.Parallel()
	long, over := strings.Repeat("é", MaxTitle), strings.Repeat("é", MaxTitle+1)
	longDescription, overDescription := strings.Repeat("😀", MaxDescription), strings.Repeat("😀", MaxDescription+1)
	blank := strings.Repeat(" ", MaxTitle) + "far"
	for name, tc := range map[string]struct {
		title, description *string
		want               events.TaskImported
		cut                bool
	}{
		"as they are":    {ptr("a"), ptr("b"), events.TaskImported{Title: "a", Description: ptr("b")}, false},
		"no description": {ptr("a"), nil, events.TaskImported{Title: "a"}, false},
		"the longest": {&long, &longDescription,
			events.TaskImported{Title: long, Description: &longDescription}, false},
		"too long": {&over, &overDescription, events.TaskImported{
			Title: long, FullTitle: &over, Description: &longDescription, FullDescription: &overDescription,
		}, true},
		"no title":       {nil, nil, events.TaskImported{Title: "Untitled"}, true},
		"an empty title": {ptr(""), nil, events.TaskImported{Title: "Untitled", FullTitle: ptr("")}, true},
		"nothing to see": {
			ptr("\u200b"), nil, events.TaskImported{Title: "Untitled", FullTitle: ptr("\u200b")}, true,
		},
		"seen too late":     {&blank, nil, events.TaskImported{Title: "Untitled", FullTitle: &blank}, true},
		"the default title": {ptr("Untitled"), nil, events.TaskImported{Title: "Untitled"}, false},
	} {
		got, cut := OldTask{Title: tc.title, Description: tc.description}.imported()
		if cut != tc.cut || got.Title != tc.want.Title || !equal(got.FullTitle, tc.want.FullTitle) ||
			!equal(got.Description, tc.want.Description) || !equal(got.FullDescription, tc.want.FullDescription) {
			t.Errorf("%s: %+v, cut %t", name, got, cut)
		}
		if wrong := CheckTitle(got.Title); wrong != nil {
			t.Errorf("%s: no title of a task: %+v", name, wrong)
		}
	}
}

func oldTasks(n int) []OldTask {
	tasks := make([]OldTask, n)
	for i := range tasks {
		at := time.Unix(int64(i), 0)
		tasks[i] = OldTask{ID: uuid.New(), Title: ptr(fmt.Sprint("old ", i)), CreatedAt: at, UpdatedAt: at}
	}
	return tasks
}

// Another process never stops writing to the same user's stream. All old tasks get in all the same, each once.
func TestAnAdoptionBesideABusyUser(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	many, one := newProcess(t, db), newProcess(t, db)
	do(t, many, CreateTask{ID: idA, Title: "a"})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			for ctx.Err() == nil {
				if _, err := many.Do(t.Context(), Request{UserID: "u", RequestID: "r"}, ToggleTask{idA}); err != nil {
					t.Errorf("of the many: %v", err)
				}
			}
		})
	}
	a := Adoption{Log: one.cfg.Log, RequestID: "adopt-1"}
	tasks := oldTasks(30)
	for i := range tasks {
		// Each comes with the one before it, and that one a second time.
		again := []OldTask{tasks[max(i-1, 0)], tasks[i], tasks[max(i-1, 0)]}
		done, err := a.Adopt(t.Context(), "u", again)
		if err != nil || done.New != 1 || done.There != 2 || done.Position == 0 {
			t.Errorf("task %d: %+v %v", i, done, err)
		}
	}
	stop()
	work.Wait()
	seen := map[uuid.UUID]int{}
	for _, e := range stored(t, one, "u") {
		if e.Data.Type() == events.TypeTaskImported {
			seen[e.TaskID]++
			if e.Actor != "system" || e.RequestID != "adopt-1" {
				t.Errorf("it was done by %q in %q", e.Actor, e.RequestID)
			}
		}
	}
	for i := range tasks {
		if seen[tasks[i].ID] != 1 {
			t.Errorf("task %d is there %d times", i, seen[tasks[i].ID])
		}
	}
}

// What is appended between the look and the append is looked at again: a task with the same id, and an erasure.
func TestAnAdoptionThatIsOvertaken(t *testing.T) {
	t.Parallel()
	h := newProcess(t, newDB(t))
	a := Adoption{Log: h.cfg.Log, RequestID: "adopt-1"}
	tasks := oldTasks(2)
	overtaken := func(user string, meanwhile func()) error {
		submit := func(ctx context.Context, c *events.Commit, done func(error)) error {
			meanwhile()
			return h.cfg.Log.Submit(ctx, c, done)
		}
		_, err := a.once(t.Context(), h.cfg.Log.DB(), submit, user, tasks)
		return err
	}
	err := overtaken("u", func() { do(t, h, CreateTask{ID: tasks[1].ID, Chosen: &tasks[1].ID, Title: "mine"}) })
	if !errors.Is(err, events.ErrConflict) {
		t.Errorf("overtaken by a task with the same id: %v", err)
	}
	if done, err := a.Adopt(t.Context(), "u", tasks); err != nil || done.New != 1 || done.There != 1 {
		t.Errorf("after it: %+v %v", done, err)
	}
	do(t, h, CreateTask{ID: uuid.New(), Title: "one"})
	err = overtaken("u", func() { t.Error("nothing is new, and something was appended") })
	if err != nil {
		t.Error(err)
	}
	tasks = oldTasks(2)
	err = overtaken("u", func() {
		if _, err := h.Erase(t.Context(), Request{UserID: "u", RequestID: "r"}); err != nil {
			t.Error(err)
		}
	})
	if !errors.Is(err, events.ErrConflict) {
		t.Errorf("overtaken by an erasure: %v", err)
	}
	if done, err := a.Adopt(t.Context(), "u", tasks); !errors.Is(err, ErrErased) {
		t.Errorf("after it: %+v %v", done, err)
	}
	do(t, h, CreateTask{ID: uuid.New(), Title: "a new life"})
	a.DryRun = true
	if done, err := a.Adopt(t.Context(), "u", tasks); !errors.Is(err, ErrErased) {
		t.Errorf("in a new life: %+v %v", done, err)
	}
	if done, err := a.Adopt(t.Context(), "v", tasks); err != nil || done.New != 2 || len(stored(t, h, "v")) != 0 {
		t.Errorf("a dry run: %+v %v", done, err)
	}
}
