package httpapi

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"taskledger/events"
	"taskledger/projections"
)

func (s *service) erase(user string) answer {
	s.t.Helper()
	return s.want(204, call{method: "DELETE", path: "/api/me", user: user})
}

func (s *service) verified() {
	s.t.Helper()
	_, err := projections.Verify(
		context.Background(),
		s.ledger.DB(),
		"",
		func(d projections.Difference) { s.t.Errorf("verify: %s", d) },
	)
	if err != nil {
		s.t.Fatal(err)
	}
}

// Nothing that the user could have written is left in the database, whatever it is written in; others keep all they
// have.
func TestAnErasureLeavesNothing(t *testing.T) {
	t.Parallel()
	s := start(t).allow(200)
	const secret, theirs = "qZ7xK9vW3mT5", "bY2nR8cL4pH6"
	s.writeEverywhere("mortal", secret)
	s.writeEverywhere("neighbour", theirs)
	s.exec(`ANALYZE {schema}.tasks, {schema}.task_history, {schema}.task_events`)
	before := s.everythingOf("neighbour")
	places := func(word string) []string { return append(s.inFiles(word), s.inDump(word)...) }
	for _, word := range []string{secret, theirs} {
		if got := places(word); len(got) < 5 {
			t.Fatalf("before the erasure %s is only found in %q: the search finds nothing", word, got)
		}
	}
	head := len(s.historyOf("mortal"))
	erased := s.erase("mortal")
	if got := erased.Header.Get("X-Version"); got != strconv.Itoa(head+1) || len(erased.body) != 0 {
		t.Errorf("version %s behind %d events", got, head)
	}
	if got := s.historyOf("mortal"); len(got) != 1 { // and the read model shows it
		t.Errorf("the history after it: %+v", got)
	}
	if got := s.inDump(secret); len(got) > 0 {
		t.Errorf("the secret is in the dump: %q", got)
	}
	if left := s.leftInFiles(secret); len(left) > 0 {
		t.Errorf("the secret is in %q", left)
	}
	if got := places(theirs); len(got) < 5 {
		t.Errorf("what others wrote is only found in %q", got)
	}
	if after := s.everythingOf("neighbour"); after != before {
		t.Errorf("the neighbour has\n%s\nhad\n%s", after, before)
	}
	s.verified()
}

// writeEverywhere has a user write a word wherever a user can.
func (s *service) writeEverywhere(user, word string) {
	s.t.Helper()
	for i := range 40 {
		task := as[taskJSON](s.t, s.want(201, call{method: "POST", path: "/api/tasks", user: user,
			header: http.Header{"Idempotency-Key": {fmt.Sprint(word, i)}, "X-Request-Id": {fmt.Sprint(word, i)}},
			body:   fmt.Sprintf(`{"title":"%s %d","description":"%s"}`, word, i, strings.Repeat(word, 1+i*2))}))
		path := "/api/tasks/" + task.ID.String()
		if i%2 == 0 {
			s.want(200, call{method: "PATCH", path: path, user: user, body: fmt.Sprintf(`{"title":"%d %s"}`, i, word)})
		}
		if i%3 == 0 {
			s.want(204, call{method: "DELETE", path: path, user: user})
		}
	}
	s.list(user, "")
}

// everythingOf is all that the API tells a user.
func (s *service) everythingOf(user string) string {
	var all strings.Builder
	for _, path := range []string{"/api/tasks", "/api/trash", "/api/history", "/api/sync", "/api/ledger"} {
		a := s.want(200, call{method: "GET", path: path, user: user})
		fmt.Fprintf(&all, "%s %s %s\n", path, a.Header.Get("X-Version"), a.body)
	}
	return all.String()
}

func (s *service) historyOf(user string) []historyJSON {
	s.t.Helper()
	return as[[]historyJSON](s.t, s.want(200, call{method: "GET", path: "/api/history", user: user}))
}

// spellings are a word as it may stand in a file: as it is, in hexadecimal, and in base64 at each of the three places
// it can begin at.
func spellings(word string) (out [][]byte) {
	out = append(
		out,
		[]byte(word),
		[]byte(hex.EncodeToString([]byte(word))),
		[]byte(strings.ToUpper(hex.EncodeToString([]byte(word)))),
	)
	for skip := range 3 {
		encoded := base64.RawStdEncoding.EncodeToString(append(make([]byte, skip), word...))
		out = append(out, []byte(encoded[[]int{0, 2, 3}[skip]:len(encoded)-3]))
	}
	return append(out, bytes.ToLower([]byte(word)))
}

func contains(data []byte, word string) bool {
	return slices.ContainsFunc(spellings(word), func(s []byte) bool { return bytes.Contains(data, s) })
}

// inFiles are the files of the database that a word is in: those of tables, of their TOAST, of indexes, and of the
// planner's statistics.
func (s *service) inFiles(word string) (found []string) {
	s.t.Helper()
	rows, err := s.pool.Query(context.Background(), `
		SELECT c.oid::regclass::text, pg_read_binary_file(pg_relation_filepath(c.oid))
		FROM pg_class c
		WHERE pg_relation_filepath(c.oid) IS NOT NULL`)
	if err != nil {
		s.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		var data []byte
		if err := rows.Scan(&name, &data); err != nil {
			s.t.Fatal(err)
		}
		if contains(data, word) {
			found = append(found, name)
		}
	}
	if rows.Err() != nil {
		s.t.Fatal(rows.Err())
	}
	return found
}

// leftInFiles are the files that a word is in when all that nobody can see any more is taken away.
func (s *service) leftInFiles(word string) (left []string) {
	s.t.Helper()
	// who reads in another transaction keeps dead rows from being taken away
	for deadline := time.Now().Add(time.Minute); ; {
		s.exec(`VACUUM FULL {schema}.tasks, {schema}.task_history, {schema}.task_events, {schema}.users`)
		s.exec(`CHECKPOINT`)
		if left = s.inFiles(word); len(left) == 0 || time.Now().After(deadline) {
			return left
		}
	}
}

// inDump are the lines of a dump that a word is in. Where a PostgreSQL was downloaded, pg_dump is missing: then it is
// the rows as text.
func (s *service) inDump(word string) (found []string) {
	s.t.Helper()
	var dir string
	if err := s.pool.QueryRow(context.Background(), `SELECT setting FROM pg_config WHERE name = 'BINDIR'`).
		Scan(&dir); err != nil {
		s.t.Fatal(err)
	}
	var dump []byte
	program, err := exec.LookPath(filepath.Join(filepath.FromSlash(dir), "pg_dump"))
	if err == nil {
		dump, err = exec.Command(program, "--inserts", "--dbname", s.pool.Config().ConnString()).Output()
	} else {
		err = s.pool.QueryRow(context.Background(), `SELECT schema_to_xml('taskledger', true, false, '')::text`).
			Scan(&dump)
	}
	if err != nil {
		s.t.Fatalf("dump: %v", err)
	}
	for line := range bytes.Lines(dump) {
		if contains(line, word) {
			found = append(found, string(line[:min(60, len(line))]))
		}
	}
	return found
}

// Open streams hear of the erasure and end, on every process; whoever begins behind it, or at the very beginning, hears
// of the next life.
func TestAnErasureEndsStreams(t *testing.T) {
	t.Parallel()
	s := start(t)
	other := startOn(t, s.pool)
	s.titled("u", "a")
	s.titled("v", "b")
	stream, far, neighbour := s.listen("u", ""), other.listen("u", "0"), other.listen("v", "0")
	far.want(1)
	neighbour.want(1)
	s.erase("u")
	for name, r := range map[string]*reader{"here": stream, "there": far} {
		f := r.want(2)
		if f.Event != "erased" || f.Data.Type != events.TypeUserErased || f.Data.Task != nil ||
			f.Data.TaskID != uuid.Nil {
			t.Errorf("%s: %s %s", name, f.Event, f.raw)
		}
		if f, err := r.next(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: after it %+v, %v", name, f, err)
		}
	}
	s.titled("u", "next life") // 3
	s.titled("v", "more")
	neighbour.want(2)
	late := other.listen("u", "1") // it stands in the old life
	late.want(2)
	if f, err := late.next(); !errors.Is(err, io.EOF) {
		t.Errorf("a stream of the old life goes on with %+v, %v", f, err)
	}
	for _, from := range []string{"0", "2"} {
		r := other.listen("u", from)
		if from == "0" {
			if f := r.want(2); f.Event != "erased" {
				t.Errorf("the first event is %s", f.raw)
			}
		}
		if f := r.want(3); f.Data.Task == nil || f.Data.Task.Title != "next life" {
			t.Errorf("from %s: %s", from, f.raw)
		}
	}
}

// formerLife is what a client has of a user who was erased.
type formerLife struct {
	tasks []taskJSON        // four, made with the keys k0 to k3; the last was deleted, the first changed
	kept  map[string]answer // what was read, by path
}

func (old formerLife) path(i int) string { return "/api/tasks/" + old.tasks[i].ID.String() }

// eraseALife gives u six events, which two processes keep, and erases them: that is the seventh.
func eraseALife(t *testing.T) (s, other *service, old formerLife) {
	t.Helper()
	s = start(t)
	other = startOn(t, s.pool)
	for i := range 4 {
		old.tasks = append(old.tasks, as[taskJSON](t, s.want(201, call{method: "POST", path: "/api/tasks", user: "u",
			header: keyed(fmt.Sprint("k", i)), body: fmt.Sprintf(`{"title":"old %d"}`, i)})))
	}
	s.want(204, call{method: "DELETE", path: old.path(3), user: "u"}) // 5
	s.change("PATCH", old.path(0), `{"title":"old"}`)                 // 6
	old.kept = map[string]answer{}
	for _, p := range []string{
		"/api/tasks?limit=1", "/api/history?limit=1", "/api/trash", "/api/sync?since=2", "/api/ledger", old.path(0),
	} {
		old.kept[p] = s.want(200, call{method: "GET", path: p, user: "u"})
		other.want(200, call{method: "GET", path: p, user: "u"}) // and the other process keeps it
	}
	if erased := s.erase("u"); erased.Header.Get("X-Version") != "7" {
		t.Fatalf("erased at %s", erased.Header.Get("X-Version"))
	}
	return s, other, old
}

// What a client has kept of the old life gives nothing of it in the next.
func TestNothingOfTheOldLifeComesBack(t *testing.T) {
	t.Parallel()
	s, other, old := eraseALife(t)
	for _, on := range []*service{s, other} {
		on.givesNothingFor(old)
		on.hasNoPastOf(old)
		on.refusesWritesTo(old)
		for since := range 7 {
			page := on.sync("?since=" + strconv.Itoa(since))
			if len(page.Changes) != 0 || page.Version != 7 || page.Reset != (since > 0) {
				t.Errorf("sync from %d: %+v", since, page)
			}
		}
	}
	entries := s.historyOf("u")
	if len(entries) != 1 || entries[0].Seq != 7 || entries[0].Type != events.TypeUserErased ||
		entries[0].Actor != "u" || string(entries[0].Changes) != "{}" {
		t.Fatalf("the history: %+v", entries)
	}
	s.verified()
}

// givesNothingFor asks again for all that was kept, with its tags and its cursors.
func (s *service) givesNothingFor(old formerLife) {
	s.t.Helper()
	for p, a := range old.kept {
		c := call{method: "GET", path: p, user: "u", header: http.Header{"If-None-Match": {a.Header.Get("ETag")}}}
		if p == old.path(0) {
			s.refused(404, "not_found", c)
		} else if again := s.want(200, c); bytes.Contains(again.body, []byte("old")) ||
			again.Header.Get("X-Version") != "7" {
			s.t.Errorf("%s: %s", p, again.body)
		}
		if next := nextPage(s.t, a); next != "" {
			page := s.want(200, call{method: "GET", path: next, user: "u"})
			if bytes.Contains(page.body, []byte("old")) {
				s.t.Errorf("%s: %s", next, page.body)
			}
		}
	}
}

// hasNoPastOf asks for the old life itself: as of a moment of it, for its history and for its links.
func (s *service) hasNoPastOf(old formerLife) {
	s.t.Helper()
	for _, at := range []string{"0", "1", "6", "7", url.QueryEscape(old.tasks[3].CreatedAt)} {
		if got := s.list("u", "?as_of="+at); len(got) != 0 {
			s.t.Errorf("as of %s: %+v", at, got)
		}
		s.refused(404, "not_found", call{method: "GET", path: old.path(0) + "?as_of=" + at, user: "u"})
	}
	s.refused(404, "not_found", call{method: "GET", path: old.path(0) + "/history", user: "u"})
	p := s.refused(404, "not_found", call{method: "GET", path: "/api/ledger?seq=6", user: "u"})
	if strings.Contains(p.Detail, "task") {
		s.t.Errorf("an erased event is no task: %s", p.Detail)
	}
	s.refused(404, "not_found", call{method: "GET", path: "/api/ledger?seq=1", user: "u"})
}

func (s *service) refusesWritesTo(old formerLife) {
	s.t.Helper()
	for _, write := range []call{
		{method: "PATCH", path: old.path(0), body: `{"title":"x"}`},
		{method: "POST", path: old.path(0) + "/restore"},
		{method: "POST", path: old.path(3) + "/restore"},
		{method: "POST", path: old.path(0) + "/revert", body: `{"version":1}`},
		batchOf("", op("restore", old.tasks[3].ID, ``)),
	} {
		write.user = "u"
		s.refused(404, "not_found", write)
	}
}

// The chain goes on behind an erasure: the proof names the link that it follows.
func TestAnErasureFollowsTheLastLink(t *testing.T) {
	t.Parallel()
	s, _, old := eraseALife(t)
	var data []byte
	if err := s.pool.QueryRow(t.Context(), `SELECT data FROM taskledger.task_events WHERE user_id = 'u'`).
		Scan(&data); err != nil {
		t.Fatal(err)
	}
	link := as[linkJSON](t, old.kept["/api/ledger"])
	if want := fmt.Sprintf(`{"hash": %q}`, link.Hash); string(data) != want {
		t.Errorf("the proof has %s, want %s", data, want)
	}
	s.verified()
}

// The next life goes on behind the old one. The keys of that are free, and the ids of its tasks too; a second erasure
// before it has nothing to do.
func TestTheNextLifeBeginsWithNothing(t *testing.T) {
	t.Parallel()
	s, other, old := eraseALife(t)
	for _, on := range []*service{s, other} {
		on.refusesWritesTo(old) // both know of the erasure
	}
	if again := other.erase("u"); again.Header.Get("X-Version") != "7" || s.count(`user_id = 'u'`) != 1 {
		t.Errorf("erased again at %s", again.Header.Get("X-Version"))
	}
	first := other.want(201, call{method: "POST", path: "/api/tasks", user: "u", header: keyed("k0"),
		body: `{"title":"another request"}`})
	task := as[taskJSON](t, first)
	if first.Header.Get("Idempotency-Replayed") != "" || task.Version != 8 ||
		slices.ContainsFunc(old.tasks, func(o taskJSON) bool { return o.ID == task.ID }) {
		t.Errorf("the next life begins with %s", first.body)
	}
	r := s.batch(batchOf("u", op("create", old.tasks[0].ID, `,"data":{"title":"same id"}`)))
	if r[0].Version != 9 || r[0].CreatedAt == old.tasks[0].CreatedAt {
		t.Errorf("%+v", r[0])
	}
	if got := s.list("u", "?as_of=8"); len(got) != 1 || got[0].Title != "another request" {
		t.Errorf("as of 8: %+v", got)
	}
	s.verified()
}

// An erasure has a key too, which lives until the next one.
func TestARetriedErasureErasesOnce(t *testing.T) {
	t.Parallel()
	s := start(t)
	other := startOn(t, s.pool)
	s.titled("u", "first life") // 1
	s.erase("u")                // 2
	other.titled("u", "second life")
	s.titled("u", "second life") // 4
	c := call{method: "DELETE", path: "/api/me", user: "u", header: keyed("erase")}
	for i, on := range []*service{s, other, startOn(t, s.pool)} {
		a := on.want(204, c)
		if a.Header.Get("X-Version") != "5" || (a.Header.Get("Idempotency-Replayed") == "true") != (i > 0) {
			t.Errorf("%d: %v", i, a.Header)
		}
	}
	s.titled("u", "third life")
	if a := s.want(204, c); a.Header.Get("Idempotency-Replayed") != "true" || len(s.list("u", "")) != 1 {
		t.Errorf("a late retry erased the third life: %v", a.Header)
	}
	s.verified()
}

// A user without any events can be erased, and nothing comes of it.
func TestAnErasureOfNobody(t *testing.T) {
	t.Parallel()
	s := start(t)
	if a := s.erase("nobody"); a.Header.Get("X-Version") != "0" || s.count(`true`) != 0 {
		t.Errorf("%v", a.Header)
	}
	if task := s.titled("nobody", "a"); task.Version != 1 {
		t.Errorf("%+v", task)
	}
	s.refused(422, "validation_error", call{method: "DELETE", path: "/api/me", user: "nobody", header: keyed("a b")})
	s.refused(401, "unauthenticated", call{method: "DELETE", path: "/api/me"})
}

// A user is erased, time and again, while writers, batches, readers, streams and rebuilds are at work on two processes:
// nobody gets an answer that is a fault, other users lose nothing, and at the end there is only what came behind the
// last erasure.
func TestErasuresWhileEverythingRuns(t *testing.T) {
	t.Parallel()
	s := start(t).allow(10_000)
	services := []*service{s, startOn(t, s.pool).allow(10_000)}
	var writers, work sync.WaitGroup
	var done atomic.Bool
	running := func() bool { return !done.Load() }
	kept := make([]int, len(services))
	for i, on := range services {
		on.server.limits = newRateLimits(0, 0)
		writers.Go(func() { on.keepWriting("mortal", i, running) })
		writers.Go(func() {
			for n := 0; running(); n++ {
				if a := on.do(batchOf("immortal", createOp(fmt.Sprint(i, n)))); a.StatusCode != 200 {
					t.Errorf("%d %s", a.StatusCode, a.body)
				}
				kept[i]++
			}
		})
		work.Go(func() { on.keepReading("mortal", running) })
		work.Go(func() { on.keepListening("mortal", running) })
	}
	work.Go(func() {
		for running() {
			if _, err := projections.Rebuild(context.Background(), s.ledger.DB(), "", nil); err != nil {
				t.Error(err)
			}
			s.verified()
		}
	})
	var seq int64
	for n := range 8 {
		seq = services[n%2].eraseBehind(seq+10, "mortal")
	}
	done.Store(true)
	writers.Wait()
	s.titled("mortal", "so that there is something to erase")
	s.erase("mortal") // which ends the streams
	work.Wait()
	if got := s.list("mortal", ""); len(got) != 0 {
		t.Errorf("%d tasks are back", len(got))
	}
	if n := s.count(`user_id = 'mortal'`); n != 1 {
		t.Errorf("%d events are left", n)
	}
	if got := s.list("immortal", ""); len(got) != kept[0]+kept[1] {
		t.Errorf("the other user has %d tasks of %d", len(got), kept[0]+kept[1])
	}
	s.verified()
}

// eraseBehind erases a user as soon as there is an event behind seq, and gives the seq of the erasure.
func (s *service) eraseBehind(seq int64, user string) int64 {
	s.t.Helper()
	s.eventually(func() bool { return s.count(`user_id = $1 AND seq > $2`, user, seq) > 0 })
	a := s.erase(user)
	now, err := strconv.ParseInt(a.Header.Get("X-Version"), 10, 64)
	if err != nil || now <= seq {
		s.t.Errorf("erased at %d behind %d, %v", now, seq, err)
	}
	if s.count(`user_id = $1 AND seq < $2`, user, now) > 0 {
		s.t.Error("events are left")
	}
	return now
}

// keepWriting writes in every way. A task may be erased under it, but no answer may be a fault.
func (s *service) keepWriting(user string, process int, running func() bool) {
	for n := 0; running(); n++ {
		id := uuid.New()
		path := "/api/tasks/" + id.String()
		for _, c := range []call{
			{
				method: "POST", path: "/api/tasks", body: `{"title":"mortal"}`,
				header: keyed(fmt.Sprint(process, "-", n)),
			},
			batchOf("", op("create", id, `,"data":{"title":"mortal","is_completed":true}`), createOp("mortal"),
				op("update", id, `,"data":{"title":"more"}`)),
			{method: "DELETE", path: path},
			{method: "POST", path: path + "/restore"},
			{method: "POST", path: path + "/revert", body: `{"version":1}`},
		} {
			c.user = user
			a := s.do(c)
			if !slices.Contains([]int{200, 201, 204, 404, 409, 412, 422}, a.StatusCode) {
				s.t.Errorf("%s %s: %d %s", c.method, c.path, a.StatusCode, a.body)
			}
		}
	}
}

func (s *service) keepReading(user string, running func() bool) {
	for running() {
		for _, p := range []string{
			"/api/tasks", "/api/trash", "/api/history?limit=50", "/api/sync", "/api/ledger", "/api/tasks?as_of=1",
		} {
			a := s.do(call{method: "GET", path: p, user: user})
			if a.StatusCode != 200 && a.StatusCode != 422 {
				s.t.Errorf("%s: %d %s", p, a.StatusCode, a.body)
			}
		}
	}
}

// keepListening opens one stream after the other, each behind the last event of the one before. The last ends with an
// erasure.
func (s *service) keepListening(user string, running func() bool) {
	last := int64(0)
	for running() {
		r := s.listen(user, strconv.FormatInt(last, 10))
		for {
			f, err := r.next()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					s.t.Errorf("a stream breaks: %v", err)
				}
				break
			}
			if f.ID != last+1 && f.Event != "erased" {
				s.t.Errorf("a stream goes from %d to %s %s", last, f.Event, f.raw)
			}
			if last = f.ID; f.Event == "erased" && !running() {
				r.close()
				return
			}
		}
		r.close()
	}
}

// However long the deletion of a stream takes, nobody waits for it: the user can still write on another process, and
// what that did is erased too.
func TestALongErasureHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	s := start(t)
	other := startOn(t, s.pool)
	task := s.titled("u", "secret")
	s.titled("v", "a")
	s.list("u", "")
	s.exec(`CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			PERFORM pg_advisory_xact_lock_shared(42);
			RETURN NULL;
		END
		$$`)
	s.exec(`CREATE TRIGGER hold AFTER DELETE ON {schema}.task_events FOR EACH STATEMENT EXECUTE FUNCTION hold()`)
	holder, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Release()
	if _, err := holder.Exec(t.Context(), `SELECT pg_advisory_lock(42)`); err != nil {
		t.Fatal(err)
	}
	erased := make(chan answer, 1)
	go func() { erased <- s.do(call{method: "DELETE", path: "/api/me", user: "u"}) }()
	s.eventually(func() (held bool) {
		err := s.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks
			WHERE locktype = 'advisory' AND NOT granted
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`).Scan(&held)
		return err == nil && held
	})
	other.change("PATCH", "/api/tasks/"+task.ID.String(), `{"title":"secret too"}`)
	for _, on := range []*service{s, other} {
		on.titled("v", "b")
		if a := on.want(200, call{method: "GET", path: "/api/tasks", user: "v"}); a.Header.Get("X-Stale") != "" {
			t.Errorf("what others read is stale: %s", a.body)
		}
	}
	if _, err := holder.Exec(t.Context(), `SELECT pg_advisory_unlock(42)`); err != nil {
		t.Fatal(err)
	}
	if a := <-erased; a.StatusCode != 204 || a.Header.Get("X-Version") != "3" {
		t.Errorf("%d %v", a.StatusCode, a.Header)
	}
	if got := s.historyOf("u"); len(got) != 1 || got[0].Seq != 3 {
		t.Errorf("%+v", got)
	}
	s.verified()
}
