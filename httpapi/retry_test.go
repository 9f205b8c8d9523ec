package httpapi

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
)

func keyed(key string) http.Header { return http.Header{"Idempotency-Key": {key}} }

// sameAnswer compares what the contract promises to be the same.
func sameAnswer(a, b answer) bool {
	return a.StatusCode == b.StatusCode && string(a.body) == string(b.body) &&
		a.Header.Get("ETag") == b.Header.Get("ETag") &&
		a.Header.Get("Location") == b.Header.Get("Location")
}

// The same request with the same key has one effect and one answer, whatever happened in between; on every write.
func TestARetryIsAnsweredLikeTheFirst(t *testing.T) {
	t.Parallel()
	s := start(t)
	create := call{
		method: "POST",
		path:   "/api/tasks",
		user:   "u",
		body:   `{"title":"a","is_completed":true}`,
		header: keyed("k0"),
	}
	first := s.want(201, create)
	path := "/api/tasks/" + as[taskJSON](t, first).ID.String()
	calls := []call{
		create,
		{method: "PUT", path: path, body: `{"title":"b","description":"c"}`},
		{method: "PATCH", path: path, body: `{"title":"d"}`},
		{method: "PATCH", path: path + "/complete"},
		{method: "PUT", path: path + "/complete"},
		{method: "DELETE", path: path + "/complete"},
		{method: "DELETE", path: path},
	}
	firsts := []answer{first}
	for i := 1; i < len(calls); i++ {
		calls[i].user, calls[i].header = "u", keyed(fmt.Sprint("k", i))
		a := s.do(calls[i])
		if a.StatusCode >= 300 || a.Header.Get("Idempotency-Replayed") != "" {
			t.Fatalf("%s %s: %d %s", calls[i].method, calls[i].path, a.StatusCode, a.body)
		}
		firsts = append(firsts, a)
	}
	again := startOn(t, s.pool) // another process, and nothing in memory
	for _, process := range []*service{s, again} {
		for i, c := range calls {
			a := process.do(c)
			if c.method == "PUT" && strings.HasSuffix(c.path, "/complete") { // it changed nothing and left no trace
				continue
			}
			if !sameAnswer(a, firsts[i]) || a.Header.Get("Idempotency-Replayed") != "true" {
				t.Errorf(
					"%s %s: first %d %s, then %d %s %v",
					c.method,
					c.path,
					firsts[i].StatusCode,
					firsts[i].body,
					a.StatusCode,
					a.body,
					a.Header,
				)
			}
		}
	}
	spelled := create
	spelled.body = ` { "is_completed" : true, "title":"\u0061", "unknown":1 } `
	if a := s.do(spelled); !sameAnswer(a, first) {
		t.Errorf("the same request in other words: %d %s", a.StatusCode, a.body)
	}
	for _, other := range []call{
		{method: "POST", path: "/api/tasks", body: `{"title":"b","is_completed":true}`},
		{method: "POST", path: "/api/tasks", body: `{"title":"a"}`},
		{method: "PATCH", path: path + "/complete"},
		{method: "PUT", path: missing, body: `{"title":"a"}`},
	} {
		other.user, other.header = "u", keyed("k0")
		s.refused(422, "idempotency_key_reused", other)
	}
	create.user = "v"
	if a := s.want(201, create); a.Header.Get("Idempotency-Replayed") != "" {
		t.Error("another user's key was taken for this one's")
	}
}

func TestARefusedCommandLeavesNoTraceOfItsKey(t *testing.T) {
	t.Parallel()
	s := start(t)
	path := "/api/tasks/" + s.titled("u", "a").ID.String()
	s.refused(
		412,
		"precondition_failed",
		call{
			method: "DELETE",
			path:   path,
			user:   "u",
			header: http.Header{"Idempotency-Key": {"k"}, "If-Match": {`"9"`}},
		},
	)
	s.refused(404, "not_found", call{method: "DELETE", path: missing, user: "u", header: keyed("k")})
	s.want(200, call{method: "DELETE", path: path + "/complete", user: "u", header: keyed("k")}) // nothing changes
	if a := s.want(
		200,
		call{method: "PATCH", path: path + "/complete", user: "u", header: keyed("k")},
	); a.Header.Get(
		"Idempotency-Replayed",
	) != "" {
		t.Error("replayed what had never happened")
	}
	s.refused(
		422,
		"idempotency_key_reused",
		call{
			method: "PATCH",
			path:   path + "/complete",
			user:   "u",
			header: http.Header{"Idempotency-Key": {"k"}, "If-Match": {`"1"`}},
		},
	)
}

func TestKeysAreVisibleASCII(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, key := range []string{"", " ", "a b", "é", "a\tb", strings.Repeat("k", 256)} {
		s.refused(
			422,
			"validation_error",
			call{method: "POST", path: "/api/tasks", user: "u", body: `{"title":"a"}`, header: keyed(key)},
		)
	}
	s.refused(
		422,
		"validation_error",
		call{
			method: "POST",
			path:   "/api/tasks",
			user:   "u",
			body:   `{"title":"a"}`,
			header: http.Header{"Idempotency-Key": {"a", "b"}},
		},
	)
	s.want(
		201,
		call{
			method: "POST",
			path:   "/api/tasks",
			user:   "u",
			body:   `{"title":"a"}`,
			header: keyed(strings.Repeat("~", 255)),
		},
	)
}

// 50 requests with one key at once, to two processes: one effect, one answer.
func TestOneKeyAtOnceIsOneEffect(t *testing.T) {
	t.Parallel()
	one := start(t)
	two := startOn(t, one.pool)
	answers := make([]answer, 50)
	var work sync.WaitGroup
	for i := range answers {
		work.Go(func() {
			process := []*service{one, two}[i%2]
			answers[i] = process.do(
				call{method: "POST", path: "/api/tasks", user: "u", body: `{"title":"once"}`, header: keyed("k")},
			)
		})
	}
	work.Wait()
	replayed := 0
	for _, a := range answers {
		if !sameAnswer(a, answers[0]) || a.StatusCode != 201 {
			t.Errorf("%d %s, and %d %s", a.StatusCode, a.body, answers[0].StatusCode, answers[0].body)
		}
		if a.Header.Get("Idempotency-Replayed") == "true" {
			replayed++
		}
	}
	if replayed != 49 || len(one.list("u", "")) != 1 {
		t.Errorf("%d of 50 replayed, %d tasks", replayed, len(one.list("u", "")))
	}
}

func TestReadsWaitForTheirVersion(t *testing.T) {
	t.Parallel()
	s := start(t)
	path := "/api/tasks/" + s.titled("u", "a").ID.String()
	for n := range 20 {
		a := s.want(200, call{method: "PATCH", path: path + "/complete", user: "u"})
		version := a.Header.Get("X-Version")
		for _, read := range []string{path, "/api/tasks", path + "/history", "/api/history"} {
			if got := s.want(
				200,
				call{method: "GET", path: read + "?min_version=" + version, user: "u"},
			); got.Header.Get(
				"X-Version",
			) != version {
				t.Fatalf("%s in turn %d: X-Version %s, want %s", read, n, got.Header.Get("X-Version"), version)
			}
		}
	}
	if a := s.want(
		503,
		call{method: "GET", path: "/api/tasks?min_version=999", user: "u"},
	); a.Header.Get("Retry-After") == "" ||
		as[problemJSON](t, a).Code != "not_yet_consistent" {
		t.Errorf("%s %v", a.body, a.Header)
	}
	for _, wrong := range []string{"", "-1", "x", "1.5", "99999999999999999999"} {
		s.refused(422, "validation_error", call{method: "GET", path: path + "?min_version=" + wrong, user: "u"})
	}
}

// damage stores an event that cannot be read.
func (s *service) damage(user string, seq int64) {
	s.t.Helper()
	s.exec(`
		INSERT INTO {schema}.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		VALUES ($1, $2, gen_random_uuid(), 'TaskRenamed', 1, '{}', gen_random_uuid(), gen_random_uuid(), $1, 'r',
			clock_timestamp())`,
		user, seq)
}

// Who is parked is told so, instead of being silently wrong; nobody else is.
func TestStaleAnswersSaySo(t *testing.T) {
	t.Parallel()
	s := start(t)
	path := "/api/tasks/" + s.titled("u", "a").ID.String()
	s.titled("v", "a")
	s.damage("u", 2)
	s.titled("v", "behind it in the log") // visible only when the projections have passed the event
	for _, read := range []string{path, "/api/tasks", path + "/history", "/api/history", missing} {
		if a := s.do(
			call{method: "GET", path: read, user: "u"},
		); a.Header.Get("X-Stale") != "true" ||
			a.Header.Get("X-Version") != "1" {
			t.Errorf("%s: %d %v", read, a.StatusCode, a.Header)
		}
		if a := s.do(call{method: "GET", path: read, user: "v"}); a.Header.Get("X-Stale") != "" {
			t.Errorf("%s of another user: %v", read, a.Header)
		}
	}
	// What is written all the same is stored, and shown when an operator has mended it.
	s.want(200, call{method: "PATCH", path: path + "/complete", user: "u"})
	if a := s.want(
		200,
		call{method: "GET", path: path, user: "u"},
	); a.Header.Get("X-Stale") != "true" ||
		as[taskJSON](t, a).IsCompleted {
		t.Errorf("%v %s", a.Header, a.body)
	}
}

// 50 writers with one If-Match, on two processes: one has its way, the others are told the version that it left.
func TestOneIfMatchAtOnceLetsOneThrough(t *testing.T) {
	t.Parallel()
	one := start(t)
	two := startOn(t, one.pool)
	for turn := range 4 {
		task := one.titled("u", "a")
		path := "/api/tasks/" + task.ID.String()
		write := []call{
			{
				method: "PATCH",
				path:   path,
				body:   `{"title":"b"}`,
			},
			{method: "PUT", path: path, body: `{"description":"c"}`},
			{method: "PATCH", path: path + "/complete"},
			{method: "PUT", path: path + "/complete"},
		}
		answers := make([]answer, 50)
		var work sync.WaitGroup
		for i := range answers {
			work.Go(func() {
				c := write[(i/2+turn)%len(write)]
				c.user, c.header = "u", http.Header{"If-Match": {etag(task.Version)}}
				answers[i] = []*service{one, two}[i%2].do(c)
			})
		}
		work.Wait()
		counts := map[int]int{}
		for _, a := range answers {
			counts[a.StatusCode]++
			if want := etag(task.Version + 1); a.Header.Get("ETag") != want {
				t.Errorf("%d with ETag %s, want %s: %s", a.StatusCode, a.Header.Get("ETag"), want, a.body)
			}
		}
		if counts[200] != 1 || counts[412] != 49 {
			t.Errorf("answers: %v", counts)
		}
	}
}

// 100 toggles of one task at once, on two processes: all succeed, each is a version of its own, and an even number
// leaves it as it was.
func TestTogglesAtOnceAllCount(t *testing.T) {
	t.Parallel()
	one := start(t)
	two := startOn(t, one.pool)
	task := one.titled("u", "a")
	path := "/api/tasks/" + task.ID.String()
	versions := make([]int64, 100)
	var work sync.WaitGroup
	for i := range versions {
		work.Go(func() {
			after := as[taskJSON](
				t,
				[]*service{one, two}[i%2].want(200, call{method: "PATCH", path: path + "/complete", user: "u"}),
			)
			versions[i] = after.Version
			if after.IsCompleted != (after.Version%2 == 0) {
				t.Errorf("version %d: %+v", after.Version, after)
			}
		})
	}
	work.Wait()
	slices.Sort(versions)
	for i, v := range versions {
		if v != int64(i)+2 {
			t.Fatalf("versions %v", versions)
		}
	}
	for _, s := range []*service{one, two} {
		if after := as[taskJSON](
			t,
			s.want(200, call{method: "GET", path: path, user: "u"}),
		); after.IsCompleted ||
			after.Version != 101 {
			t.Errorf("after 100 toggles: %+v", after)
		}
	}
	history := as[[]historyJSON](t, one.want(200, call{method: "GET", path: path + "/history", user: "u"}))
	for i, e := range history {
		if e.Seq != int64(i)+1 {
			t.Fatalf("entry %d has seq %d", i, e.Seq)
		}
	}
	if len(history) != 101 {
		t.Errorf("%d entries", len(history))
	}
}
