package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// batchOf is a batch of commands.
func batchOf(user string, commands ...string) call {
	return call{
		method: "POST",
		path:   "/api/batch",
		user:   user,
		body:   `{"commands":[` + strings.Join(commands, ",") + `]}`,
	}
}

func op(name string, id uuid.UUID, more string) string {
	return fmt.Sprintf(`{"op":%q,"id":%q%s}`, name, id, more)
}

func createOp(title string) string { return fmt.Sprintf(`{"op":"create","data":{"title":%q}}`, title) }

func (s *service) batch(c call) []*taskJSON {
	s.t.Helper()
	return as[struct{ Results []*taskJSON }](s.t, s.want(200, c)).Results
}

// count counts rows of the log.
func (s *service) count(where string, args ...any) (n int) {
	s.t.Helper()
	sql := `SELECT count(*) FROM taskledger.task_events WHERE ` + where
	if err := s.pool.QueryRow(context.Background(), sql, args...).
		Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// Each command of a batch finds what those before it left; all of their events are stored together.
func TestABatchIsOneCommandAfterTheOther(t *testing.T) {
	t.Parallel()
	s := start(t)
	old := s.titled("u", "old") // 1
	id := uuid.New()
	a := s.want(200, batchOf("u",
		// 2, 3
		op("create", id, `,"data":{"title":"new","description":"d","is_completed":true}`),
		// 4, 5, 6
		op("update", id, `,"if_match":3,"data":{"title":"newer","description":null,"id":"x","is_completed":false}`),
		// 7
		op("complete", old.ID, `,"if_match":1`),
		// nothing
		op("complete", old.ID, `,"if_match":7,"data":"not looked at"`),
		// 8
		op("delete", id, `,"if_match":6`),
		// 9
		op("restore", id, `,"if_match":8`),
		// 10
		op("reopen", old.ID, ``),
		// 11
		op("delete", id, ``),
		// 12
		createOp("last"),
	))
	results := as[struct{ Results []*taskJSON }](t, a).Results
	var got []string
	for _, r := range results {
		if r == nil {
			got = append(got, "-")
			continue
		}
		got = append(got, fmt.Sprintf("%s %t %d", r.Title, r.IsCompleted, r.Version))
	}
	want := "new true 3|newer false 6|old true 7|old true 7|-|newer false 9|old false 10|-|last false 12"
	if strings.Join(got, "|") != want {
		t.Errorf("results %s, want %s", strings.Join(got, "|"), want)
	}
	if a.Header.Get("X-Version") != "12" || a.Header.Get("ETag") != "" {
		t.Errorf("headers: %v", a.Header)
	}
	if r := results[0]; r.ID != id || r.UserID != "u" || *r.Description != "d" || r.CreatedAt != r.UpdatedAt ||
		results[5].CreatedAt != r.CreatedAt || results[2].CreatedAt != old.CreatedAt ||
		results[2].UpdatedAt != r.CreatedAt {
		t.Errorf("the times of a batch: %s", a.body)
	}
	if n := s.count(`seq > 1 AND command_id = (SELECT command_id FROM taskledger.task_events WHERE seq = 2)`); n != 11 {
		t.Errorf("%d events under the command's id", n)
	}
	if got := titles(s.list("u", "")); strings.Join(got, "|") != "last|old" {
		t.Errorf("the list: %q", got)
	}
	if got := s.list("u", "?as_of=5"); len(got) != 2 || got[0].Description != nil || !got[0].IsCompleted {
		t.Errorf("in the middle of a batch: %+v", got)
	}
	// What changes nothing stores nothing.
	quiet := s.want(200, batchOf("u", op("reopen", old.ID, ``), op("update", old.ID, `,"data":{"title":"old"}`)))
	if n := s.count(`true`); n != 12 || quiet.Header.Get("X-Version") != "12" {
		t.Errorf("%d events after a batch that changed nothing, version %s", n, quiet.Header.Get("X-Version"))
	}
}

// The first command that cannot be carried out gives the answer, with its index, and nothing is kept.
func TestABatchIsAllOrNothing(t *testing.T) {
	t.Parallel()
	s := start(t)
	mine := s.titled("u", "mine")
	theirs := s.titled("other", "theirs")
	deleted := s.titled("u", "deleted")
	s.want(204, call{method: "DELETE", path: "/api/tasks/" + deleted.ID.String(), user: "u"})
	n := s.count(`true`)
	for _, tc := range []struct {
		last   string
		status int
		code   string
	}{
		{op("complete", uuid.New(), ``), 404, "not_found"},
		{op("complete", theirs.ID, ``), 404, "not_found"},
		{op("restore", theirs.ID, ``), 404, "not_found"},
		{op("delete", deleted.ID, ``), 404, "not_found"},
		{op("update", deleted.ID, `,"if_match":1,"data":{"title":"x"}`), 404, "not_found"},
		{op("restore", mine.ID, ``), 409, "version_conflict"},
		{op("restore", deleted.ID, `,"if_match":2`), 412, "precondition_failed"},
		{op("restore", mine.ID, `,"if_match":99`), 412, "precondition_failed"},
		// the batch has changed it
		{op("update", mine.ID, `,"if_match":1,"data":{"title":"x"}`), 412, "precondition_failed"},
		{op("create", mine.ID, `,"data":{"title":"x"}`), 409, "version_conflict"},
		{op("create", deleted.ID, `,"data":{"title":"x"}`), 409, "version_conflict"},
	} {
		c := batchOf("u", createOp("a"), op("complete", mine.ID, `,"if_match":1`), createOp("b"), tc.last)
		c.header = keyed("k")
		p := s.refused(tc.status, tc.code, c)
		if p.Index == nil || *p.Index != 3 {
			t.Errorf("%s: %+v", tc.last, p)
		}
		if tc.status == 412 && p.CurrentVersion == 0 {
			t.Errorf("%s: no current version: %+v", tc.last, p)
		}
		if got := s.count(`true`); got != n {
			t.Fatalf("%s: %d events were kept", tc.last, got-n)
		}
	}
	// What was refused left no trace of its key, and nothing in memory that a next command would be decided on.
	c := batchOf("u", op("complete", mine.ID, `,"if_match":1`))
	c.header = keyed("k")
	if r := s.batch(c); r[0].Version != 4 {
		t.Errorf("after the refusals: %+v", r[0])
	}
	if got := titles(s.list("u", "")); strings.Join(got, "|") != "mine" {
		t.Errorf("the list: %q", got)
	}
}

func TestTheSizeOfABatch(t *testing.T) {
	t.Parallel()
	s := start(t).allow(1000)
	var creates, completes []string
	for i := range 100 {
		creates = append(creates, createOp(fmt.Sprintf("task %d", i)))
	}
	made := s.batch(batchOf("u", creates...))
	if len(made) != 100 || made[99].Title != "task 99" || made[99].Version != 100 {
		t.Fatalf("%d made", len(made))
	}
	for _, r := range made {
		completes = append(completes, op("update", r.ID, `,"data":{"title":"x","description":"y","is_completed":true}`))
	}
	c := batchOf("u", completes...)
	c.header = keyed("hundred")
	first := s.want(200, c)
	if r := as[struct{ Results []*taskJSON }](
		t,
		first,
	).Results; r[0].Version != 103 || r[99].Version != 400 ||
		!r[99].IsCompleted {
		t.Errorf("three changes of each of 100: %+v, %+v", r[0], r[99])
	}
	if again := s.want(200, c); string(again.body) != string(first.body) || again.Header.Get("X-Version") != "400" {
		t.Errorf("the retry: %.300s", again.body)
	}
	if got := s.list("u", "?status=completed"); len(got) != 100 {
		t.Errorf("%d completed", len(got))
	}
	n := s.count(`true`)
	for _, commands := range [][]string{{}, append(creates, createOp("one more"))} {
		p := s.refused(422, "validation_error", batchOf("u", commands...))
		if p.Index != nil || *p.Errors[0].Pointer != "/commands" {
			t.Errorf("%d commands: %+v", len(commands), p)
		}
	}
	const empty = `{"commands":[{"op":"create","data":{"title":"a"}}]}`
	sized := func(n int) call {
		return call{method: "POST", path: "/api/batch", user: "u", body: empty + strings.Repeat(" ", n-len(empty))}
	}
	s.want(200, sized(256<<10))
	s.refused(413, "payload_too_large", sized(256<<10+1))
	if got := s.count(`true`); got != n+1 {
		t.Errorf("%d events more", got-n)
	}
}

// All that is wrong with a batch is told at once, with where it is; index is that of the first command.
func TestABatchIsReadStrictly(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.titled("u", "mine").ID
	known := `"id":"` + id.String() + `"`
	for body, pointers := range map[string]string{
		`{}`:                       "/commands",
		`{"commands":null}`:        "/commands",
		`{"commands":{}}`:          "/commands",
		`{"commands":"x"}`:         "/commands",
		`{"Commands":[]}`:          "/commands",
		`{"commands":[]}`:          "/commands",
		`[]`:                       "",
		`null`:                     "",
		`{"commands":[null]}`:      "0 /commands/0",
		`{"commands":[[]]}`:        "0 /commands/0",
		`{"commands":[{}]}`:        "0 /commands/0/op",
		`{"commands":[{"op":1}]}`:  "0 /commands/0/op",
		`{"commands":[{"op":""}]}`: "0 /commands/0/op",
		`{"commands":[{"op":"toggle",` + known + `}]}`:                                 "0 /commands/0/op",
		`{"commands":[{"op":"revert",` + known + `,"data":{"version":1}}]}`:            "0 /commands/0/op",
		`{"commands":[{"op":"complete"}]}`:                                             "0 /commands/0/id",
		`{"commands":[{"op":"complete","id":null}]}`:                                   "0 /commands/0/id",
		`{"commands":[{"op":"complete","id":7}]}`:                                      "0 /commands/0/id",
		`{"commands":[{"op":"complete","id":"x"}]}`:                                    "0 /commands/0/id",
		`{"commands":[{"op":"complete","id":"00000000-0000-0000-0000-000000000000"}]}`: "0 /commands/0/id",
		`{"commands":[{"op":"create"}]}`:                                               "0 /commands/0/data/title",
		`{"commands":[{"op":"create","title":"x"}]}`:                                   "0 /commands/0/data/title",
		`{"commands":[{"op":"create","data":null}]}`: "0 /commands/0/data " +
			"/commands/0/data/title",
		`{"commands":[{"op":"create","data":{"title":"\ud800"}}]}`:  "0 /commands/0/data/title",
		`{"commands":[{"op":"create","data":{"title":"a\u0000"}}]}`: "0 /commands/0/data/title",
		`{"commands":[{"op":"create","data":{"title":"a"}},` +
			`{"op":"create","data":{"title":"","description":1,"is_completed":null}}]}`: "1 /commands/1/data/title " +
			"/commands/1/data/description /commands/1/data/is_completed",
		`{"commands":[{"op":"update",` + known + `,"data":{"title":null}}]}`:            "0 /commands/0/data/title",
		`{"commands":[{"op":"update",` + known + `,"data":[]}]}`:                        "0 /commands/0/data",
		`{"commands":[{"op":"complete",` + known + `,"if_match":"1"}]}`:                 "0 /commands/0/if_match",
		`{"commands":[{"op":"complete",` + known + `,"if_match":0}]}`:                   "0 /commands/0/if_match",
		`{"commands":[{"op":"complete",` + known + `,"if_match":null}]}`:                "0 /commands/0/if_match",
		`{"commands":[{"op":"complete",` + known + `,"if_match":1.5}]}`:                 "0 /commands/0/if_match",
		`{"commands":[{"op":"complete",` + known + `,"if_match":9223372036854775808}]}`: "0 /commands/0/if_match",
		`{"commands":[{"op":"complete",` + known + `},{"op":"x"},{"op":"delete","id":"y"}]}`: "1 /commands/1/op " +
			"/commands/2/id",
	} {
		p := s.refused(422, "validation_error", call{method: "POST", path: "/api/batch", user: "u", body: body})
		var got []string
		if p.Index != nil {
			got = append(got, fmt.Sprint(*p.Index))
		}
		for _, e := range p.Errors {
			if e.Pointer == nil {
				t.Fatalf("%s: %+v", body, p)
			}
			got = append(got, *e.Pointer)
		}
		if strings.Join(got, " ") != pointers {
			t.Errorf("%s: %q, want %q", body, strings.Join(got, " "), pointers)
		}
	}
	for _, body := range []string{
		`{"commands":[{"op":"create","op":"delete"}]}`,
		`{"commands":[{"op":"create","data":{"title":"a","title":"b"}}]}`,
		`{"commands":[]} x`, `{"commands":[}`, "{\"commands\":[{\"op\":\"create\",\"data\":{\"title\":\"\xff\"}}]}", ``,
		`{"commands":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`,
	} {
		s.refused(400, "invalid_json", call{method: "POST", path: "/api/batch", user: "u", body: body})
	}
	s.refused(415, "unsupported_media_type", call{method: "POST", path: "/api/batch", user: "u", body: `{}`,
		header: http.Header{"Content-Type": {"text/plain"}}})
	if n := s.count(`true`); n != 1 {
		t.Errorf("%d events", n)
	}
}

// A batch replays as a whole, for ever, on every process; another request under its key is refused.
func TestABatchReplays(t *testing.T) {
	t.Parallel()
	s := start(t)
	old := s.titled("u", "old")
	id := uuid.New()
	commands := []string{
		op("complete", old.ID, ``), createOp("a"), op("create", id, `,"data":{"title":"b","is_completed":true}`),
		op("complete", old.ID, ``), op("update", id, `,"data":{"title":"c"}`), op("delete", id, ``),
	}
	c := batchOf("u", commands...)
	c.header = keyed("k")
	first := s.want(200, c)
	s.change("PATCH", "/api/tasks/"+old.ID.String(), `{"title":"changed since"}`)
	s.want(200, call{method: "POST", path: "/api/tasks/" + id.String() + "/restore", user: "u"})
	n := s.count(`true`)
	restarted := startOn(t, s.pool)
	spaced := c
	spaced.body = strings.ReplaceAll(c.body, `,"`, ` , "`)
	for _, retry := range []struct {
		on *service
		c  call
	}{{s, c}, {restarted, c}, {restarted, spaced}} {
		again := retry.on.want(200, retry.c)
		if string(again.body) != string(first.body) || again.Header.Get("Idempotency-Replayed") != "true" ||
			again.Header.Get("X-Version") != first.Header.Get("X-Version") {
			t.Errorf("the retry:\n%s %v\nfirst:\n%s", again.body, again.Header, first.body)
		}
	}
	if first.Header.Get("Idempotency-Replayed") != "" {
		t.Error("the first was no replay")
	}
	one := batchOf("u", createOp("a"))
	one.header = keyed("one")
	s.want(200, one)
	for _, other := range []call{
		batchOf("u", commands[:5]...),
		batchOf("u", append(commands, createOp("more"))...),
		batchOf("u", append([]string{commands[1], commands[0]}, commands[2:]...)...),
		batchOf("u", append([]string{op("complete", old.ID, `,"if_match":1`)}, commands[1:]...)...),
		{method: "POST", path: "/api/tasks", user: "u", body: `{"title":"a"}`},
		{method: "DELETE", path: "/api/me", user: "u"},
	} {
		other.header = keyed("k")
		s.refused(422, "idempotency_key_reused", other)
	}
	// One command alone, and a batch of that one, are two requests.
	s.refused(
		422,
		"idempotency_key_reused",
		call{method: "POST", path: "/api/tasks", user: "u", body: `{"title":"a"}`, header: keyed("one")},
	)
	s.want(201, call{method: "POST", path: "/api/tasks", user: "u", body: `{"title":"a"}`, header: keyed("alone")})
	alone := batchOf("u", createOp("a"))
	alone.header = keyed("alone")
	s.refused(422, "idempotency_key_reused", alone)
	// The key is the user's.
	alone.user = "v"
	s.want(200, alone)
	if got := s.count(`user_id = 'u'`); got != n+2 {
		t.Errorf("%d events more", got-n)
	}
}

// The quota holds after each command of a batch, whatever comes behind it.
func TestTheQuotaInABatch(t *testing.T) {
	t.Parallel()
	s := start(t) // 10 tasks
	var creates []string
	for i := range 11 {
		creates = append(creates, createOp(fmt.Sprint(i)))
	}
	if p := s.refused(422, "quota_exceeded", batchOf("u", creates...)); p.Index == nil || *p.Index != 10 {
		t.Errorf("eleven: %+v", p)
	}
	all := s.batch(batchOf("u", creates[:10]...))
	fresh := uuid.New()
	over := batchOf("u", createOp("over"), op("delete", all[0].ID, ``))
	if p := s.refused(422, "quota_exceeded", over); p.Index == nil || *p.Index != 0 {
		t.Errorf("a create before a delete: %+v", p)
	}
	s.batch(batchOf("u", op("delete", all[0].ID, ``), op("create", fresh, `,"data":{"title":"in its place"}`)))
	if p := s.refused(422, "quota_exceeded", batchOf("u", op("restore", all[0].ID, ``))); *p.Index != 0 {
		t.Errorf("a restore: %+v", p)
	}
	if p := s.refused(
		422,
		"quota_exceeded",
		batchOf("u", op("delete", fresh, ``), op("restore", all[0].ID, ``), op("restore", fresh, ``)),
	); *p.Index != 2 {
		t.Errorf("two restores in the place of one: %+v", p)
	}
	s.batch(batchOf("u", op("delete", fresh, ``), op("restore", all[0].ID, ``)))
	if got := s.list("u", ""); len(got) != 10 {
		t.Errorf("%d tasks", len(got))
	}
	// Batches of two processes at once do not get past it together.
	other := startOn(t, s.pool)
	s.want(204, call{method: "DELETE", path: "/api/tasks/" + all[0].ID.String(), user: "u"})
	statuses := make(chan int, 8)
	for i := range cap(statuses) {
		on := []*service{s, other}[i%2]
		go func() { statuses <- on.do(batchOf("u", createOp("one more"))).StatusCode }()
	}
	var made int
	for range cap(statuses) {
		if status := <-statuses; status == 200 {
			made++
		} else if status != 422 {
			t.Errorf("answered with %d", status)
		}
	}
	if got := s.list("u", ""); made != 1 || len(got) != 10 {
		t.Errorf("%d made, %d tasks", made, len(got))
	}
}

// A batch is decided again, whole, when another process was first.
func TestBatchesOfTwoProcesses(t *testing.T) {
	t.Parallel()
	s := start(t)
	other := startOn(t, s.pool)
	a, b := s.titled("u", "a"), s.titled("u", "b")
	const rounds = 20
	done := make(chan []json.RawMessage, 2)
	for _, on := range []*service{s, other} {
		go func() {
			var out []json.RawMessage
			for range rounds {
				// It leaves both as it found them: whoever comes between finds them the same.
				answer := on.do(
					batchOf(
						"u",
						op("complete", a.ID, ``),
						op("complete", b.ID, ``),
						op("reopen", a.ID, ``),
						op("reopen", b.ID, ``),
					),
				)
				if answer.StatusCode != 200 {
					t.Errorf("%d %s", answer.StatusCode, answer.body)
				}
				out = append(out, answer.body)
			}
			done <- out
		}()
	}
	seen := map[int64]bool{}
	for range 2 {
		for _, body := range <-done {
			var r struct{ Results []*taskJSON }
			if err := json.Unmarshal(body, &r); err != nil || len(r.Results) != 4 {
				t.Fatalf("%v: %s", err, body)
			}
			first := r.Results[0].Version
			for i, task := range r.Results {
				if task.Version != first+int64(i) || task.IsCompleted != (i < 2) || seen[task.Version] {
					t.Errorf("a batch was cut: %s", body)
				}
				seen[task.Version] = true
			}
		}
	}
	if n := s.count(`true`); n != 2+2*rounds*4 {
		t.Errorf("%d events", n)
	}
}
