package query

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"taskledger/events"
)

// Titles and descriptions that tell apart what a database and a program might do differently with letters and order.
var (
	someTitles = []string{
		"straße", "STRASSE", "Éclair", "eclair", "éclair", "zebra", "Zebra", "ß", "ss", "10", "9", "a b", "ab", "%",
		"_", "Ωmega", "ωMEGA", "ꭰ", "Ꭰ", "co-op", "coop", "日本", "🙂", "İstanbul", "istanbul",
	}
	someDescriptions = []string{"", "Straße", "100% _sure_", "ÉCLAIR au café"}
)

// write puts tasks into the read model as the projection would, and one event into the log for each.
func (f *fixture) write(tasks []events.Task) {
	f.t.Helper()
	for i := range tasks {
		t := &tasks[i]
		f.exec(`INSERT INTO {schema}.tasks VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
			t.UserID, t.ID, t.Version, t.Completed, t.CreatedAt, t.UpdatedAt, t.DeletedAt,
			events.TitleKey(t.Title), events.SearchText(t.Title, t.Description), string(t.AppendJSON(nil)))
	}
	n := len(tasks)
	f.exec(`INSERT INTO {schema}.users (user_id, seq, live, hash) VALUES ('u', $1, 0, '')`, n)
	f.head("u", n)
}

// manyTasks are tasks of which several share each property that lists are ordered or chosen by.
func manyTasks() (tasks []events.Task) {
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for i := range 2 * len(someTitles) {
		t := events.Task{
			UserID: "u", ID: uuid.New(), Version: int64(i + 1), Title: someTitles[i%len(someTitles)],
			Completed: i%3 == 0, CreatedAt: at.Add(time.Duration(i/4) * time.Microsecond),
			UpdatedAt: at.Add(time.Duration(i*7%11) * time.Second),
		}
		if d := someDescriptions[i%len(someDescriptions)]; d != "" {
			t.Description = &d
		}
		if i%10 == 9 {
			t.DeletedAt = &at
		}
		tasks = append(tasks, t)
	}
	return tasks
}

// Whatever is asked about live tasks has the same answer from the read model and from what is known of it.
func TestKnownTasksAnswerAsTheReadModelDoes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write(manyTasks())
	deadline := time.Now().Add(time.Hour)
	_, live, err := f.askLive(t.Context(), Ask{UserID: "u"}, 0, deadline)
	if err != nil || len(live) != 45 {
		t.Fatalf("%d tasks, %v", len(live), err)
	}
	items := 0
	for _, filter := range filters() {
		page := Page{Limit: 7}
		for {
			want, err := f.ask(t.Context(), Ask{UserID: "u"}, listing(t, filter, page).question(), 0, deadline)
			if err != nil {
				t.Fatal(err)
			}
			var got Answer
			if err := filter.pick(live, page, &got); err != nil {
				t.Fatal(err)
			}
			if string(got.Body) != string(want.Body) || (got.Next == nil) != (want.Next == nil) {
				t.Fatalf("%+v, %+v:\n%s\nwant\n%s", filter, page, got.Body, want.Body)
			}
			items += len(ids(t, got))
			if want.Next == nil {
				break
			}
			if fmt.Sprint(*got.Next) != fmt.Sprint(*want.Next) {
				t.Fatalf("%+v: the next page begins at %v, want %v", filter, *got.Next, *want.Next)
			}
			page.After = want.Next
		}
	}
	if items < 1000 {
		t.Errorf("only %d items were compared", items)
	}
}

// filters are all there are of the present, some with a search.
func filters() (all []TaskFilter) {
	for _, status := range []Status{StatusAll, StatusPending, StatusCompleted} {
		for _, sort := range []Sort{SortCreatedAt, SortUpdatedAt, SortTitle} {
			for _, order := range []Order{Ascending, Descending} {
				for _, search := range []string{"", "strasse", "ÉCLAIR", "100% _", "ꭰ", "İ", "nothing like it"} {
					all = append(all, TaskFilter{Status: status, Sort: sort, Order: order, Search: search})
				}
			}
		}
	}
	return all
}

// Who asks for lists again and again is answered from memory, whatever the list, also when this process has written
// since, and the read model does not show it yet.
func TestListsFollowWhatIsWritten(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tasks := manyTasks()
	f.write(tasks)
	byTitle := TaskFilter{Status: StatusAll, Sort: SortTitle, Order: Ascending}
	byTime := TaskFilter{Status: StatusAll, Sort: SortCreatedAt, Order: Ascending}
	f.list(byTime, Page{Limit: 2})
	last := f.list(byTitle, Page{Limit: 3}) // from now on all are known
	f.exec(`TRUNCATE {schema}.tasks`)
	expect := func(why string) {
		t.Helper()
		for _, filter := range []TaskFilter{byTitle, byTime} {
			a := f.list(filter, Page{})
			var want liveTasks
			for i := range tasks {
				if tasks[i].Live() {
					want = append(want, &tasks[i])
				}
			}
			var made Answer
			if err := filter.pick(want, Page{}, &made); err != nil || string(a.Body) != string(made.Body) || a.Stale {
				t.Errorf("%s: %+v %s, %v, want %s", why, a.Head, a.Body, err, made.Body)
			}
		}
		for i := range tasks[:3] {
			a, err := f.Task(t.Context(), Ask{UserID: "u"}, tasks[i].ID, nil)
			if tasks[i].Live() != (err == nil) || err == nil && string(a.Body) != string(tasks[i].AppendJSON(nil)) {
				t.Errorf("%s: task %d is %s, %v", why, i, a.Body, err)
			}
		}
	}
	seq, head := len(tasks), last.EventID
	write := func(changed ...events.Task) {
		t.Helper()
		c := &events.Commit{After: head}
		for i := range changed {
			seq++
			changed[i].Version = int64(seq)
			f.head("u", seq)
			head = value[uuid.UUID](
				f, `SELECT event_id FROM {schema}.task_events WHERE user_id = 'u' AND seq = $1`, seq)
			c.Events = append(c.Events,
				events.Event{UserID: "u", Seq: int64(seq), TaskID: changed[i].ID, EventID: head})
			at := slices.IndexFunc(tasks, func(t events.Task) bool { return t.ID == changed[i].ID })
			if at < 0 {
				at, tasks = len(tasks), append(tasks, events.Task{})
			}
			tasks[at] = changed[i]
		}
		f.Wrote(c, slices.Clone(changed))
	}
	expect("nothing has happened")
	renamed, deleted := tasks[0], tasks[1]
	renamed.Title = "renamed"
	deleted.DeletedAt = &deleted.CreatedAt
	write(renamed, deleted)
	expect("one was renamed, one deleted")
	deleted.DeletedAt = nil
	created := events.Task{UserID: "u", ID: uuid.New(), Title: "new", CreatedAt: renamed.CreatedAt.Add(time.Hour)}
	write(created)
	write(deleted)
	expect("one is new, one was restored")
	if n := f.model.waits.Load(); n > 0 {
		t.Errorf("the read model was waited for %d times", n)
	}
	head = uuid.New()
	write(renamed)
	f.exec(`UPDATE {schema}.users SET seq = $1`, seq)
	if a := f.list(byTitle, Page{}); string(a.Body) != "[]" || a.Seq != int64(seq) {
		t.Errorf("something else was written in between: %+v %s", a.Head, a.Body)
	}
}

// What is known is bounded: a user with too many tasks, or too large ones, is answered by the read model.
func TestTooManyTasksAreNotKnown(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(maxKeptTasks * 10 / 9) // of which one in ten is deleted
	known := func() bool {
		l := listing(t, TaskFilter{Status: StatusAll, Sort: SortTitle, Order: Descending}, Page{Limit: 5})
		for range 2 {
			if a, err := f.List(t.Context(), Ask{UserID: "u"}, l); err != nil || len(ids(t, a)) != 5 {
				t.Fatalf("%s, %v", a.Body, err)
			}
			l.Limit = 4 + 1
			l.Filter = TaskFilter{Status: StatusAll, Sort: SortTitle, Order: Ascending}
			l.name += "again"
		}
		f.kept.mu.Lock()
		defer f.kept.mu.Unlock()
		u, ok := f.kept.users.Get("u")
		return ok && u.live != nil
	}
	if !known() {
		t.Error("as many as may be known are not")
	}
	if !f.kept.get("u", question{list: true}).learn || f.kept.get("u", question{}).learn {
		t.Error("all tasks are asked for by who asks for no list")
	}
	f.exec(`UPDATE {schema}.tasks SET deleted_at = NULL`)
	f.exec(`UPDATE {schema}.users SET generation = 1`)
	if known() {
		t.Error("more are known than should be")
	}
	if f.kept.get("u", question{list: true}).learn {
		t.Error("they are asked for again and again")
	}
	large := liveTasks{{Title: strings.Repeat("x", maxKeptTaskBytes)}}
	if large.few() {
		t.Error("a task that is too large is kept")
	}
	c := &events.Commit{Events: []events.Event{{TaskID: uuid.New()}}}
	if (liveTasks{}).follow(c, nil) != nil {
		t.Error("it is not known what became of a task, and all are known")
	}
	if got := (liveTasks{}).follow(c, []events.Task{{ID: c.Events[0].TaskID, Version: 1}}); len(got) != 1 {
		t.Errorf("%d tasks after the first was created", len(got))
	}
}

// Of one user few answers are kept, the last one always.
func TestFewAnswersOfAUserAreKept(t *testing.T) {
	t.Parallel()
	k := newKept(1 << 20)
	for i := range 200 {
		for _, key := range []string{fmt.Sprint("list ", i), keyOfTask(uuid.New())} {
			k.put("u", key, Answer{Body: []byte("[]")})
			if k.get("u", question{key: key}).answer == nil {
				t.Fatal("the answer that was given last is not kept")
			}
		}
	}
	u, _ := k.users.Get("u")
	if len(u.tasks.by) != maxTaskAnswers || len(u.others.by) != maxOthers {
		t.Errorf("%d and %d answers are kept", len(u.tasks.by), len(u.others.by))
	}
	for _, answers := range []keptAnswers{u.tasks, u.others} {
		bytes := 0
		for key, a := range answers.by {
			bytes += size(key, a)
		}
		if bytes != answers.bytes {
			t.Errorf("%d bytes are counted of %d", answers.bytes, bytes)
		}
	}
}
