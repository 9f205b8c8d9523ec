package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"taskledger/events"
	"taskledger/httpapi/auth"
	"taskledger/migrations/testdb"
)

// keyed sends a write under an idempotency key, and returns the answer as it came.
func (s *served) keyed(user, path, body, key string) (answer string, replayed bool) {
	s.t.Helper()
	token, err := auth.SignToken([]byte(serveSecret), user, "", "", time.Now(), time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), "POST", s.base+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Idempotency-Key", key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		s.t.Fatalf("POST %s: %d %s %v", path, resp.StatusCode, text, err)
	}
	return fmt.Sprint(
			resp.StatusCode,
			resp.Header.Get("ETag"),
			string(text),
		), resp.Header.Get(
			"Idempotency-Replayed",
		) == "true"
}

const (
	keyedTask  = `{"title":"Buy \"milk\"\u2028","description":"1 €\n\t日本","is_completed":true}`
	keyedBatch = `{"commands":[{"op":"create","data":{"title":"first"}},{"op":"create","data":{"title":"second"}}]}`
)

// fillLedger makes a ledger with all that an export may have to carry: keys, an erasure, an event that was skipped, an
// empty title.
func fillLedger(t *testing.T, env []string) (s *served, answers [2]string) {
	t.Helper()
	s = startServer(t, env...)
	answers[0], _ = s.keyed("alice", "/api/tasks", keyedTask, "key-1")
	answers[1], _ = s.keyed("alice", "/api/batch", keyedBatch, "key-2")
	id := s.must(201, "böb/😀", "POST", "/api/tasks", `{"title":"erased"}`)["id"].(string)
	s.must(200, "böb/😀", "PATCH", "/api/tasks/"+id, `{"title":"a","description":"b"}`)
	s.must(204, "böb/😀", "DELETE", "/api/me", "")
	s.must(201, "böb/😀", "POST", "/api/tasks", `{"title":"a new life"}`)
	id = s.must(201, "carol", "POST", "/api/tasks", `{"title":"carol's"}`)["id"].(string)
	execute(t, strings.TrimPrefix(env[0], "DATABASE_URL="), `
		INSERT INTO taskledger.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		VALUES ('carol', 2, gen_random_uuid(), 'TaskRenamed', 7, '{"b":1e2,"a":{}}', gen_random_uuid(),
			gen_random_uuid(), 'carol', 'r', clock_timestamp())`)
	execute(
		t,
		strings.TrimPrefix(env[0], "DATABASE_URL="),
		`INSERT INTO taskledger.skipped_events (user_id, seq) VALUES ('carol', 2)`,
	)
	s.must(200, "carol", "PATCH", "/api/tasks/"+id, `{"title":"goes on"}`)
	s.must(204, "carol", "DELETE", "/api/tasks/"+id, "")
	return s, answers
}

// output runs a command that must succeed, with an input, and returns its output.
func output(t *testing.T, env []string, stdin string, args ...string) string {
	t.Helper()
	cmd := program(t, env, args...)
	cmd.Stdin = strings.NewReader(stdin)
	got := finish(t, cmd)
	if got.code != 0 {
		t.Fatalf("%v: exit code %d, %s%s", args, got.code, got.stdout, got.stderr)
	}
	return got.stdout
}

// inFile writes a text to a file.
func inFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "export.ndjson")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// A command about a user whom nobody knows, or whose name is an empty variable of a script, says so and does nothing.
func TestCommandsAboutNobody(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + testdb.URL(t)}
	for _, command := range []string{"export", "verify", "rebuild", "history", "erase --yes"} {
		got := finish(t, program(t, env, append(strings.Fields(command), "--user=nobody")...))
		if got.code != exitFailed || got.stdout != "" || strings.Count(got.stderr, "\n") != 1 ||
			!strings.Contains(got.stderr, `there is no user "nobody"`) {
			t.Errorf("%s --user=nobody: %+v", command, got)
		}
	}
}

// The log of one ledger goes into another one, of another cluster and beside a running server, exactly as it was.
func TestExportAndImport(t *testing.T) {
	t.Parallel()
	secret := "BETTER_AUTH_SECRET=" + serveSecret
	from := []string{"DATABASE_URL=" + testdb.URL(t), secret}
	source, answers := fillLedger(t, from)
	export := output(t, from, "", "export")
	checked := output(t, nil, "", "verify", "--export", inFile(t, export))
	if checked != "checked 10 events of 3 users: the chain holds\n" {
		t.Errorf("verify --export: %s", checked)
	}

	to := []string{"DATABASE_URL=" + testdb.Server(t).URL(), secret}
	target := startServer(t, to...)
	target.must(201, "zoe", "POST", "/api/tasks", `{"title":"was here before"}`)
	changes := target.stream("carol")
	out := output(t, to, "", "import", inFile(t, export))
	if !strings.HasPrefix(out, "imported 10 events of 3 users in ") || strings.Count(out, "\n") != 1 {
		t.Errorf("import: %s", out)
	}
	hear(t, changes, "event: task.deleted")
	for _, user := range []string{"alice", "böb/😀", "carol"} {
		if own := output(t, to, "", "export", "--user", user); own != output(t, from, "", "export", "--user", user) {
			t.Errorf("the export of %s is another one:\n%s", user, own)
		}
		was, is := source.must(200, user, "GET", "/api/ledger", ""), target.must(200, user, "GET", "/api/ledger", "")
		if fmt.Sprint(was) != fmt.Sprint(is) {
			t.Errorf("the link of %s was %v, is %v", user, was, is)
		}
		_, listed, _ := source.list(user)
		if _, found, err := target.list(user); err != nil || fmt.Sprint(found) != fmt.Sprint(listed) {
			t.Errorf("%s's tasks are %v, were %v; %v", user, found, listed, err)
		}
	}
	for i, of := range []struct{ path, body, key string }{
		{"/api/tasks", keyedTask, "key-1"}, {"/api/batch", keyedBatch, "key-2"},
	} {
		if answer, replayed := target.keyed("alice", of.path, of.body, of.key); !replayed || answer != answers[i] {
			t.Errorf("%s is answered with %s, replayed %t; was %s", of.key, answer, replayed, answers[i])
		}
	}
	if next := target.must(201, "böb/😀", "POST", "/api/tasks", `{"title":"goes on"}`); next["version"] != 6.0 {
		t.Errorf("the next version is %v", next["version"])
	}
	target.shown("böb/😀")
	if out := output(t, to, "", "verify"); out != "compared 4 users, 12 events, 23 rows; 0 parked\n" {
		t.Errorf("verify: %s", out)
	}
	// The positions that an import leaves free are no events.
	st, _ := statusOf(t, to...)
	if log := st.Ledger.Log; log.Events != 12 || log.Estimated || log.LastHour != 12 {
		t.Errorf("status: %+v", log)
	}
	if out := output(t, to, "", "rebuild"); !strings.Contains(out, "rebuilt: 12 events") {
		t.Errorf("rebuild: %s", out)
	}

	_, own := source.fetch("böb/😀", "/api/export")
	importsFromAPipe(t, export, own)
	target.terminate()
	source.terminate()
}

// importsFromAPipe takes an export into another schema, as somebody who is not a superuser; a user's own export too.
func importsFromAPipe(t *testing.T, export, own string) {
	t.Helper()
	owner := []string{"DATABASE_URL=" + asOwner(t, testdb.URL(t)), "DATABASE_SCHEMA=another"}
	output(t, owner, "", "migrate")
	output(t, owner, export, "import", "-")
	if again := output(t, owner, "", "export"); again != export {
		t.Errorf("exported again:\n%s", again)
	}
	output(t, owner, "", "verify")
	third := []string{"DATABASE_URL=" + testdb.URL(t)}
	out := output(t, third, own, "import", "-")
	if !strings.Contains(out, "2 events of 1 user") || !strings.Contains(out, "does not say how much") {
		t.Errorf("a user's own export: %s", out)
	}
	output(t, third, "", "verify")
}

// hear reads a stream until it says something.
func hear(t *testing.T, from io.Reader, text string) {
	t.Helper()
	defer time.AfterFunc(patience, func() { _ = from.(io.Closer).Close() }).Stop()
	heard := ""
	for part := make([]byte, 1<<10); !strings.Contains(heard, text); {
		n, err := from.Read(part)
		if heard += string(part[:n]); err != nil && !strings.Contains(heard, text) {
			t.Fatalf("an open stream said %q and ended: %v", heard, err)
		}
	}
}

// fetch gets a text as a user.
func (s *served) fetch(user, path string) (status int, text string) {
	s.t.Helper()
	token, err := auth.SignToken([]byte(serveSecret), user, "", "", time.Now(), time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), "GET", s.base+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// forged changes a line of an export, and makes its hash anew.
func forged(t *testing.T, line string, before events.Hash, replacements ...string) string {
	t.Helper()
	record, _, ok := strings.Cut(strings.NewReplacer(replacements...).Replace(line), `,"hash":`)
	if !ok {
		t.Fatalf("%s is no line of an export", line)
	}
	return record + `,"hash":"` + before.Next([]byte(record+"}")).String() + `"}` + "\n"
}

// contents is how much there is in each table of a ledger.
func contents(t *testing.T, url string) (found string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	err = conn.QueryRow(t.Context(), `
		SELECT concat_ws(' ',
			(SELECT count(*) FROM taskledger.task_events), (SELECT count(*) FROM taskledger.skipped_events),
			(SELECT count(*) FROM taskledger.tasks), (SELECT count(*) FROM taskledger.task_history),
			(SELECT count(*) FROM taskledger.users), (SELECT position FROM taskledger.checkpoints))`).Scan(&found)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// importRefuses offers an export, of which one line must say why it is not taken.
func importRefuses(t *testing.T, env []string, export, want string) {
	t.Helper()
	cmd := program(t, env, "import", "-")
	cmd.Stdin = strings.NewReader(export)
	got := finish(t, cmd)
	if got.code != exitFailed || got.stdout != "" || strings.Count(got.stderr, "\n") != 1 ||
		!strings.Contains(got.stderr, want) {
		t.Errorf("%+v, want %s", got, want)
	}
}

// refusal is an export that is not taken, and what is said of it.
type refusal struct{ export, want string }

// refusals are made of the lines of an export of three users.
func refusals(t *testing.T, lines []string) map[string]refusal {
	t.Helper()
	alices := strings.Join(lines[:4], "")
	swapped := slices.Clone(lines)
	swapped[1], swapped[2] = swapped[2], swapped[1]
	var zero events.Hash
	return map[string]refusal{
		"a user who is there": {strings.Join(lines, ""), `line 7: user "carol" is in this ledger already`},
		"a broken chain":      {strings.Replace(alices, `"title":"first"`, `"title":"fiRst"`, 1), "the hash of seq 3"},
		"a line left out": {
			strings.Join(slices.Delete(slices.Clone(lines), 2, 3), ""), "line 3: seq 4 follows seq 2",
		},
		"lines swapped": {strings.Join(swapped, ""), "line 2: seq 3 follows seq 1"},
		"the end cut":   {alices, "says that it has 10 of 3"},
		"cut in a line": {alices[:len(alices)-20], "line 4: is not a record"},
		"an unknown type": {forged(t, lines[0], zero, `"type":"TaskCreated"`, `"type":"TaskPainted"`),
			"line 1: unknown stored form of an event: TaskPainted version 1"},
		"an unknown version": {
			forged(t, lines[0], zero, `"schema_version":1`, `"schema_version":2`), "line 1: unknown stored form",
		},
		"data of another type": {
			forged(t, lines[0], zero, `"type":"TaskCreated"`, `"type":"TaskRenamed"`), "line 1: decode TaskRenamed",
		},
		"data that does not fit": {
			forged(t, lines[0], zero, `"type":"TaskCreated"`, `"type":"TaskDeleted"`), "line 1: decode TaskDeleted",
		},
		"an event that cannot be": {forged(t, lines[0], zero, "TaskCreated", "TaskDescribed",
			`,"title":"Buy \"milk\"`+"\u2028"+`"`, ``),
			"there is no such live task"},
		"garbage":     {"\x1f\x8b\x08garbage", "line 1: is not a record"},
		"the history": {`[{"seq":1}]`, "line 1: is not a record"},
		"nothing":     {"", "there is nothing in the export"},
		"a long user": {
			forged(t, lines[0], zero, `"user_id":"alice"`, `"user_id":"`+strings.Repeat("a", 256)+`"`), "user_id",
		},
		"U+0000": {forged(t, lines[0], zero, `"request_id":"`, `"request_id":"\u0000`), "U+0000"},
	}
}

// What is not an export as a ledger wrote it, or is about somebody who is there, is refused whole.
func TestImportRefuses(t *testing.T) {
	t.Parallel()
	from := []string{"DATABASE_URL=" + testdb.URL(t), "BETTER_AUTH_SECRET=" + serveSecret}
	s, _ := fillLedger(t, from)
	s.terminate()
	lines := strings.SplitAfter(output(t, from, "", "export"), "\n")
	lines = lines[:len(lines)-1]
	url := testdb.URL(t)
	to := []string{"DATABASE_URL=" + url, "BETTER_AUTH_SECRET=" + serveSecret}
	target := startServer(t, to...)
	target.must(201, "carol", "POST", "/api/tasks", `{"title":"another carol"}`)
	target.must(200, "carol", "GET", "/api/tasks", "")
	target.terminate()
	before := contents(t, url)

	for name, tc := range refusals(t, lines) {
		t.Run(name, func(t *testing.T) {
			importRefuses(t, to, tc.export, tc.want)
			if after := contents(t, url); after != before {
				t.Errorf("left behind: %s, before %s", after, before)
			}
		})
	}
	got := finish(t, program(t, to, "import", "/nowhere"))
	if got.code != exitFailed || strings.Count(got.stderr, "\n") != 1 {
		t.Errorf("no file: %+v", got)
	}
	output(t, to, "", "verify")
	// The way is free again: what is right goes in.
	output(t, to, output(t, from, "", "export", "--user", "alice"), "import", "-")
	output(t, to, "", "verify")
}

// verify --export needs no database, and names the first line that is wrong.
func TestVerifyExport(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../events/testdata/chain/export.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	nowhere := []string{"DATABASE_URL=postgres://127.0.0.1:1/x"}
	if out := output(
		t,
		nowhere,
		string(text),
		"verify",
		"--export",
		"-",
	); out != "checked 8 events of 2 users: the chain holds\n" {
		t.Errorf("%s", out)
	}
	lines := strings.SplitAfter(string(text), "\n")
	one := strings.Replace(strings.Join(lines[:6], ""), `,"export":{"events":8,"users":2}`, "", 1)
	want := "checked 6 events of 1 user: the chain holds\n" +
		`user "ada" ends with seq 6, hash 4de614a92c4fab7574132ac1cd145734076b20d1ae956a2dd46cdb03cff1acee` +
		"\n" + cutNote(false)
	if out := output(t, nil, "", "verify", "--export", inFile(t, one)); out != want {
		t.Errorf("%q, want %q", out, want)
	}
	for _, tc := range []struct{ export, want string }{
		{strings.Replace(string(text), "Buy milk", "Buy wine", 1), `line 1: the hash of seq 1 of user "ada" `},
		{strings.Join(lines[:5], ""), "line 6: the export ends here, after 5 events of 1 users"},
		{"", ""},
	} {
		got := finish(t, program(t, nil, "verify", "--export", inFile(t, tc.export)))
		if got.code != exitFailed || !strings.HasPrefix(got.stdout, tc.want) || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%+v, want %s", got, tc.want)
		}
	}
	for _, args := range [][]string{{"--export", "/nowhere"}, {"--export", "x", "--user", "u"}} {
		if got := finish(
			t,
			program(t, nil, append([]string{"verify"}, args...)...),
		); got.code == 0 ||
			strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%v: %+v", args, got)
		}
	}
}

// tamperings are what somebody may do to the log of u, who has three events, and what verify says of it.
var tamperings = map[string]struct{ tamper, want string }{
	"changed": {`UPDATE taskledger.task_events SET data = '{"title":"forged"}' WHERE user_id = 'u' AND seq = 2`,
		"task_history: user=\"u\" task="},
	"a time changed": {
		`UPDATE taskledger.task_events SET recorded_at = recorded_at - interval '1 h' WHERE seq = 2`,
		"member=recorded_at",
	},
	"a request changed": {`UPDATE taskledger.task_events SET request_id = 'another' WHERE seq = 2`, "member=hash"},
	"a command changed": {
		`UPDATE taskledger.task_events SET command_id = gen_random_uuid() WHERE seq = 2`, "member=hash",
	},
	"removed": {
		`DELETE FROM taskledger.task_events WHERE user_id = 'u' AND seq = 2`,
		"task_events: user=\"u\" task= member=seq expected=2 found=3",
	},
	"the first removed": {
		`DELETE FROM taskledger.task_events WHERE user_id = 'u' AND seq = 1`, "expected=1 found=2",
	},
	"the last removed": {
		`DELETE FROM taskledger.task_events WHERE user_id = 'u' AND seq = 3`,
		"member=row expected=none found=a row",
	},
	"added": {`INSERT INTO taskledger.task_events
			(position, user_id, seq, task_id, type, schema_version, data, event_id, command_id,
				actor, request_id, recorded_at)
		OVERRIDING SYSTEM VALUE
		SELECT 0, user_id, 4, task_id, 'TaskCompleted', 1, '{}', gen_random_uuid(), command_id,
			actor, request_id, recorded_at
		FROM taskledger.task_events WHERE user_id = 'u' AND seq = 3`, "member=row expected=a row found=none"},
	"made unknown": {`UPDATE taskledger.task_events SET type = 'TaskForged' WHERE user_id = 'u' AND seq = 2`,
		"user \"u\": fold event 2 (TaskForged)"},
	"replaced by an erasure": {`DELETE FROM taskledger.task_events WHERE user_id = 'u' AND seq = 1;
		UPDATE taskledger.task_events SET type = 'UserErased', task_id = NULL,
			data = '{"hash":"` + strings.Repeat("00", 32) + `"}'
		WHERE user_id = 'u' AND seq = 2`, "member=hash"},
}

// Who owns the database can change the log, but not without a trace: verify names it, and so does a hash that somebody
// kept.
func TestVerifyNamesATamperedLog(t *testing.T) {
	t.Parallel()
	for name, tc := range tamperings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testdb.URL(t)
			env := []string{"DATABASE_URL=" + url, "BETTER_AUTH_SECRET=" + serveSecret}
			s := startServer(t, env...)
			task := "/api/tasks/" + s.must(201, "u", "POST", "/api/tasks", `{"title":"a"}`)["id"].(string)
			s.must(200, "u", "PATCH", task, `{"title":"b"}`)
			s.must(200, "u", "PATCH", task, `{"title":"c"}`)
			s.must(201, "v", "POST", "/api/tasks", `{"title":"untouched"}`)
			kept := s.must(200, "u", "GET", "/api/ledger", "")["hash"].(string)
			s.terminate()
			output(t, env, "", "verify")
			execute(t, url, `ALTER TABLE taskledger.task_events DISABLE TRIGGER USER; `+tc.tamper)
			got := finish(t, program(t, env, "verify"))
			if got.code != exitFailed || !strings.Contains(got.stdout+got.stderr, tc.want) ||
				strings.Contains(got.stdout, `user="v"`) {
				t.Errorf("verify: %+v, want %s", got, tc.want)
			}
			// Who kept the hash of seq 3 needs no more than an export. What comes behind it is another matter.
			exported := finish(t, program(t, env, "export", "--user", "u"))
			if strings.Contains(exported.stdout, `"hash":"`+kept+`"`) != (name == "added") {
				t.Errorf("the hash that was kept is %s: %s", kept, exported.stdout)
			}
		})
	}
}
