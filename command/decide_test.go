package command

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"

	"taskledger/events"
)

var (
	idA = uuid.MustParse("0190a8f0-7a57-7000-8000-00000000000a")
	idB = uuid.MustParse("0190a8f0-7a57-7000-8000-00000000000b")
)

func ptr[T any](v T) *T { return &v }

// fact is one event of a given stream.
type fact struct {
	task uuid.UUID
	data events.Data
}

func a(data events.Data) fact { return fact{idA, data} }
func b(data events.Data) fact { return fact{idB, data} }

// given folds facts into the stream of a user who may have quota tasks.
func given(t *testing.T, quota int, facts ...fact) *stream {
	t.Helper()
	s := newStream(quota)
	for i, f := range facts {
		e := events.Event{
			UserID:     "u",
			Seq:        int64(i + 1),
			TaskID:     f.task,
			RecordedAt: time.Unix(int64(i), 0),
			Data:       f.data,
		}
		if err := s.apply(&e); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestDecide(t *testing.T) {
	t.Parallel()
	created := events.TaskCreated{Title: "milk", Description: ptr("two litres")}
	is := func(versions ...int64) Match { return Match{Present: true, Versions: versions} }
	for _, tc := range []struct {
		name  string
		given []fact
		match Match
		when  Command
		then  []events.Data
		err   error
	}{
		{
			name: "create", when: CreateTask{ID: idA, Title: "milk"},
			then: []events.Data{events.TaskCreated{Title: "milk"}},
		},
		{name: "create completed is two events", when: CreateTask{ID: idA, Title: "milk", Completed: true},
			then: []events.Data{events.TaskCreated{Title: "milk"}, events.TaskCompleted{}}},
		{
			name: "create over the quota", given: []fact{a(created), b(created)},
			when: CreateTask{ID: uuid.New(), Title: "x"}, err: &QuotaError{Limit: 2},
		},
		{name: "a deleted task frees its place", given: []fact{a(created), b(created), b(events.TaskDeleted{})},
			when: CreateTask{ID: idA, Title: "x"}, then: []events.Data{events.TaskCreated{Title: "x"}}},

		{name: "update nothing", given: []fact{a(created)}, when: UpdateTask{ID: idA}},
		{name: "update to the same", given: []fact{a(created)},
			when: UpdateTask{ID: idA, Title: ptr("milk"), Description: ptr(ptr("two litres")), Completed: ptr(false)}},
		{name: "update everything is three events", given: []fact{a(created)},
			when: UpdateTask{ID: idA, Title: ptr("oat"), Description: ptr[*string](nil), Completed: ptr(true)},
			then: []events.Data{events.TaskRenamed{Title: "oat"}, events.TaskDescribed{}, events.TaskCompleted{}}},
		{name: "update reopens", given: []fact{a(created), a(events.TaskCompleted{})},
			when: UpdateTask{ID: idA, Completed: ptr(false)},
			then: []events.Data{events.TaskReopened{}}},
		{name: "update a cleared description to null", given: []fact{a(created), a(events.TaskDescribed{})},
			when: UpdateTask{ID: idA, Description: ptr[*string](nil)}},

		{
			name: "toggle completes", given: []fact{a(created)}, when: ToggleTask{idA},
			then: []events.Data{events.TaskCompleted{}},
		},
		{
			name: "toggle reopens", given: []fact{a(created), a(events.TaskCompleted{})}, when: ToggleTask{idA},
			then: []events.Data{events.TaskReopened{}},
		},
		{
			name: "complete", given: []fact{a(created)}, when: CompleteTask{idA},
			then: []events.Data{events.TaskCompleted{}},
		},
		{name: "complete again", given: []fact{a(created), a(events.TaskCompleted{})}, when: CompleteTask{idA}},
		{
			name: "reopen", given: []fact{a(created), a(events.TaskCompleted{})}, when: ReopenTask{idA},
			then: []events.Data{events.TaskReopened{}},
		},
		{name: "reopen an open one", given: []fact{a(created)}, when: ReopenTask{idA}},
		{name: "delete", given: []fact{a(created)}, when: DeleteTask{idA}, then: []events.Data{events.TaskDeleted{}}},

		{name: "update a missing task", when: UpdateTask{ID: idA}, err: ErrNotFound},
		{
			name: "toggle a deleted task", given: []fact{a(created), a(events.TaskDeleted{})}, when: ToggleTask{idA},
			err: ErrNotFound,
		},
		{
			name: "delete again", given: []fact{a(created), a(events.TaskDeleted{})}, when: DeleteTask{idA},
			err: ErrNotFound,
		},
		{name: "missing comes before the condition", match: is(1), when: DeleteTask{idA}, err: ErrNotFound},

		{
			name: "at the named version", given: []fact{a(created)}, match: is(7, 1), when: DeleteTask{idA},
			then: []events.Data{events.TaskDeleted{}},
		},
		{
			name: "at another version", given: []fact{a(created), b(created)}, match: is(2), when: DeleteTask{idA},
			err: &PreconditionError{Current: 1},
		},
		{
			name: "at no version", given: []fact{a(created)}, match: is(), when: ToggleTask{idA},
			err: &PreconditionError{Current: 1},
		},
		{
			name: "at any version", given: []fact{a(created)}, match: Match{Present: true, Any: true},
			when: ToggleTask{idA}, then: []events.Data{events.TaskCompleted{}},
		},
		{
			name: "a condition holds for what changes nothing too", given: []fact{a(created)}, match: is(9),
			when: ReopenTask{idA}, err: &PreconditionError{Current: 1},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d, err := tc.when.decide(given(t, 2, tc.given...), tc.match)
			if !reflect.DeepEqual(err, tc.err) {
				t.Fatalf("got %v, want %v", err, tc.err)
			}
			if err == nil && !(len(d.events) == 0 && len(tc.then) == 0) && !reflect.DeepEqual(d.events, tc.then) {
				t.Fatalf("got %#v, want %#v", d.events, tc.then)
			}
		})
	}
}

func TestCheckTexts(t *testing.T) {
	t.Parallel()
	long := func(n int, s string) string {
		out := ""
		for range n {
			out += s
		}
		return out
	}
	for _, tc := range []struct {
		name, title, code string
	}{
		{"one", "a", ""},
		{"a hundred of four bytes", long(100, "🥛"), ""},
		{"none", "", "too_short"},
		{"a hundred and one", long(101, "a"), "too_long"},
		{"nothing to be seen", "\u200b\u00ad\ufe0f\u3164\u2066", "blank"},
		{"U+200B alone", "\u200b", "blank"},
		{"U+200B beside a letter", "a\u200b", ""},
		{"spaces", " \t\n\u00a0\u2003", "blank"},
		{"space around is kept", " a ", ""},
		{"NUL", "a\x00", "invalid_character"},
	} {
		if got := CheckTitle(tc.title); (got == nil) != (tc.code == "") || (got != nil && got.Code != tc.code) {
			t.Errorf("title, %s: got %+v, want %q", tc.name, got, tc.code)
		}
	}
	for _, tc := range []struct {
		name, description, code string
	}{
		{"none", "", ""},
		{"only white space", "  ", ""},
		{"a thousand", long(1000, "é"), ""},
		{"a thousand and one", long(1001, "é"), "too_long"},
		{"NUL", "\x00", "invalid_character"},
	} {
		if got := CheckDescription(
			tc.description,
		); (got == nil) != (tc.code == "") ||
			(got != nil && got.Code != tc.code) {
			t.Errorf("description, %s: got %+v, want %q", tc.name, got, tc.code)
		}
	}
}

func TestStreamCountsItsLiveTasks(t *testing.T) {
	t.Parallel()
	created := events.TaskCreated{Title: "milk"}
	s := given(
		t,
		9,
		a(created),
		b(created),
		a(events.TaskDeleted{}),
		b(events.TaskCompleted{}),
		a(events.TaskRestored{}),
		b(events.TaskDeleted{}),
	)
	if s.live != 1 || s.head.Seq != 6 {
		t.Fatalf("live %d, head %d; want 1, 6", s.live, s.head.Seq)
	}
	if err := s.apply(
		&events.Event{Seq: 7, TaskID: idB, Data: events.TaskCompleted{}},
	); !errors.As(
		err,
		new(*events.FoldError),
	) {
		t.Fatalf("folded what cannot be: %v", err)
	}
}
