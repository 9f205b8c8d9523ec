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
	words := func(word string, n int) string { return strings.Repeat(word, n) }
	for user, word := range map[string]string{"mortal": secret, "neighbour": theirs} {
		for i := range 40 {
			task := as[taskJSON](t, s.want(201, call{method: "POST", path: "/api/tasks", user: user,
				header: http.Header{"Idempotency-Key": {fmt.Sprint(word, i)}, "X-Request-Id": {fmt.Sprint(word, i)}},
				body:   fmt.Sprintf(`{"title":"%s %d","description":"%s"}`, word, i, words(word, 1+i*2))}))
			if i%2 == 0 {
				s.want(
					200,
					call{
						method: "PATCH",
						path:   "/api/tasks/" + task.ID.String(),
						user:   user,
						body:   fmt.Sprintf(`{"title":"%d %s"}`, i, word),
					},
				)
			}
			if i%3 == 0 {
				s.want(204, call{method: "DELETE", path: "/api/tasks/" + task.ID.String(), user: user})
			}
		}
		s.list(user, "")
	}
	s.exec(`ANALYZE {schema}.tasks`)
	s.exec(`ANALYZE {schema}.task_history`)
	s.exec(`ANALYZE {schema}.task_events`)
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
	var left []string
	// who reads in another transaction keeps dead rows from being taken away
	for deadline := time.Now().Add(time.Minute); ; {
		s.exec(`VACUUM FULL {schema}.tasks, {schema}.task_history, {schema}.task_events, {schema}.users`)
		s.exec(`CHECKPOINT`)
		if left = s.inFiles(secret); len(left) == 0 || time.Now().After(deadline) {
			break
		}
	}
	if len(left) > 0 {
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

// What a client has kept of the old life gives nothing of it in the next, which goes on behind it.
func TestNothingOfTheOldLifeComesBack(t *testing.T) {
	t.Parallel()
	s := start(t)
	other := startOn(t, s.pool)
	var old []taskJSON
	for i := range 4 {
		old = append(
			old,
			as[taskJSON](
				t,
				s.want(201, call{method: "POST", path: "/api/tasks", user: "u", header: keyed(fmt.Sprint("k", i)),
					body: fmt.Sprintf(`{"title":"old %d"}`, i)}),
			),
		)
	}
	path := "/api/tasks/" + old[0].ID.String()
	s.want(204, call{method: "DELETE", path: "/api/tasks/" + old[3].ID.String(), user: "u"}) // 5
	s.change("PATCH", path, `{"title":"old"}`)                                               // 6
	kept := map[string]answer{}
	for _, p := range []string{
		"/api/tasks?limit=1", "/api/history?limit=1", "/api/trash", "/api/sync?since=2", "/api/ledger", path,
	} {
		kept[p] = s.want(200, call{method: "GET", path: p, user: "u"})
		other.want(200, call{method: "GET", path: p, user: "u"}) // and the other process keeps it
	}
	link := as[linkJSON](t, kept["/api/ledger"])
	erased := s.erase("u")
	if erased.Header.Get("X-Version") != "7" {
		t.Fatalf("erased at %s", erased.Header.Get("X-Version"))
	}
	for _, on := range []*service{s, other} {
		for p, a := range kept {
			c := call{method: "GET", path: p, user: "u", header: http.Header{"If-None-Match": {a.Header.Get("ETag")}}}
			if p == path {
				on.refused(404, "not_found", c)
			} else if again := on.want(200, c); bytes.Contains(again.body, []byte("old")) ||
				again.Header.Get("X-Version") != "7" {
				t.Errorf("%s: %s", p, again.body)
			}
			if next := a.Header.Get("Link"); next != "" {
				if page := on.want(
					200,
					call{method: "GET", path: nextPage(t, a), user: "u"},
				); bytes.Contains(
					page.body,
					[]byte("old"),
				) {
					t.Errorf("%s: %s", next, page.body)
				}
			}
		}
		for _, at := range []string{"0", "1", "6", "7", url.QueryEscape(old[3].CreatedAt)} {
			if got := on.list("u", "?as_of="+at); len(got) != 0 {
				t.Errorf("as of %s: %+v", at, got)
			}
			on.refused(404, "not_found", call{method: "GET", path: path + "?as_of=" + at, user: "u"})
		}
		on.refused(404, "not_found", call{method: "GET", path: path + "/history", user: "u"})
		if p := on.refused(
			404,
			"not_found",
			call{method: "GET", path: "/api/ledger?seq=6", user: "u"},
		); strings.Contains(
			p.Detail,
			"task",
		) {
			t.Errorf("an erased event is no task: %s", p.Detail)
		}
		on.refused(404, "not_found", call{method: "GET", path: "/api/ledger?seq=1", user: "u"})
		for _, write := range []call{
			{method: "PATCH", path: path, body: `{"title":"x"}`}, {method: "POST", path: path + "/restore"},
			{method: "POST", path: "/api/tasks/" + old[3].ID.String() + "/restore"},
			{method: "POST", path: path + "/revert", body: `{"version":1}`},
			batchOf("", op("restore", old[3].ID, ``)),
		} {
			write.user = "u"
			on.refused(404, "not_found", write)
		}
		for since := range 7 {
			page := on.sync("?since=" + strconv.Itoa(since))
			if len(page.Changes) != 0 || page.Version != 7 || page.Reset != (since > 0) {
				t.Errorf("sync from %d: %+v", since, page)
			}
		}
	}
	entries := s.historyOf("u")
	if len(entries) != 1 || entries[0].Seq != 7 || entries[0].Type != events.TypeUserErased ||
		entries[0].Actor != "u" ||
		string(entries[0].Changes) != "{}" {
		t.Fatalf("the history: %+v", entries)
	}
	// The chain goes on: the proof names the link that it follows.
	var data []byte
	if err := s.pool.QueryRow(t.Context(), `SELECT data FROM taskledger.task_events WHERE user_id = 'u'`).
		Scan(&data); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf(`{"hash": %q}`, link.Hash); string(data) != want {
		t.Errorf("the proof has %s, want %s", data, want)
	}
	// A second erasure has nothing to do; the keys of the old life are free, and the ids of its tasks too.
	if again := other.erase("u"); again.Header.Get("X-Version") != "7" || s.count(`user_id = 'u'`) != 1 {
		t.Errorf("erased again at %s", again.Header.Get("X-Version"))
	}
	first := other.want(
		201,
		call{method: "POST", path: "/api/tasks", user: "u", header: keyed("k0"), body: `{"title":"another request"}`},
	)
	if task := as[taskJSON](
		t,
		first,
	); first.Header.Get("Idempotency-Replayed") != "" || task.Version != 8 ||
		slices.ContainsFunc(old, func(o taskJSON) bool { return o.ID == task.ID }) {
		t.Errorf("the next life begins with %s", first.body)
	}
	if r := s.batch(
		batchOf("u", op("create", old[0].ID, `,"data":{"title":"same id"}`)),
	); r[0].Version != 9 ||
		r[0].CreatedAt == old[0].CreatedAt {
		t.Errorf("%+v", r[0])
	}
	if got := s.list("u", "?as_of=8"); len(got) != 1 || got[0].Title != "another request" {
		t.Errorf("as of 8: %+v", got)
	}
	// An erasure has a key too, which lives until the next one.
	c := call{method: "DELETE", path: "/api/me", user: "u", header: keyed("erase")}
	for i, on := range []*service{s, other, startOn(t, s.pool)} {
		a := on.want(204, c)
		if a.Header.Get("X-Version") != "10" || (a.Header.Get("Idempotency-Replayed") == "true") != (i > 0) {
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
	for _, on := range services {
		on.server.limits = newRateLimits(0, 0)
	}
	var (
		writers, work sync.WaitGroup
		done          = make(chan struct{})
		running       = func() bool {
			select {
			case <-done:
				return false
			default:
				return true
			}
		}
	)
	refusable := func(a answer) bool { return slices.Contains([]int{200, 201, 204, 404, 409, 412, 422}, a.StatusCode) }
	kept := make([]int, len(services))
	for i, on := range services {
		writers.Go(func() { // the user who is erased
			for n := 0; running(); n++ {
				id := uuid.New()
				for _, c := range []call{
					{
						method: "POST", path: "/api/tasks", body: `{"title":"mortal"}`,
						header: keyed(fmt.Sprint(i, "-", n)),
					},
					batchOf("", op("create", id, `,"data":{"title":"mortal","is_completed":true}`), createOp("mortal"),
						op("update", id, `,"data":{"title":"more"}`)),
					{method: "DELETE", path: "/api/tasks/" + id.String()},
					{method: "POST", path: "/api/tasks/" + id.String() + "/restore"},
					{method: "POST", path: "/api/tasks/" + id.String() + "/revert", body: `{"version":1}`},
				} {
					c.user = "mortal"
					if a := on.do(c); !refusable(a) {
						t.Errorf("%s %s: %d %s", c.method, c.path, a.StatusCode, a.body)
					}
				}
			}
		})
		writers.Go(func() { // another one
			for n := 0; running(); n++ {
				if a := on.do(batchOf("immortal", createOp(fmt.Sprint(i, n)))); a.StatusCode != 200 {
					t.Errorf("%d %s", a.StatusCode, a.body)
				}
				kept[i]++
			}
		})
		work.Go(func() {
			for running() {
				for _, p := range []string{
					"/api/tasks", "/api/trash", "/api/history?limit=50", "/api/sync", "/api/ledger",
					"/api/tasks?as_of=1",
				} {
					if a := on.do(
						call{method: "GET", path: p, user: "mortal"},
					); a.StatusCode != 200 &&
						a.StatusCode != 422 {
						t.Errorf("%s: %d %s", p, a.StatusCode, a.body)
					}
				}
			}
		})
		work.Go(func() { // each stream begins behind the last event of the one before
			last := int64(0)
			for running() {
				r := on.listen("mortal", strconv.FormatInt(last, 10))
				for {
					f, err := r.next()
					if err != nil {
						if !errors.Is(err, io.EOF) {
							t.Errorf("a stream breaks: %v", err)
						}
						break
					}
					if f.ID != last+1 && f.Event != "erased" {
						t.Errorf("a stream goes from %d to %s %s", last, f.Event, f.raw)
					}
					if last = f.ID; f.Event == "erased" && !running() {
						r.close()
						return
					}
				}
				r.close()
			}
		})
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
		head := seq
		s.eventually(func() bool {
			return s.count(`user_id = 'mortal' AND seq > $1`, head+10) > 0
		})
		a := services[n%2].erase("mortal")
		now, err := strconv.ParseInt(a.Header.Get("X-Version"), 10, 64)
		if err != nil || now <= seq+10 {
			t.Errorf("erased at %d behind %d, %v", now, seq, err)
		}
		if seq = now; s.count(`user_id = 'mortal' AND seq < $1`, seq) > 0 {
			t.Error("events are left")
		}
	}
	close(done)
	writers.Wait()
	s.want(
		201,
		call{
			method: "POST",
			path:   "/api/tasks",
			user:   "mortal",
			body:   `{"title":"so that there is something to erase"}`,
		},
	)
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
