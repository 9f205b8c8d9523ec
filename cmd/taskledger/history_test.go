package main

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/rivo/uniseg"

	"taskledger/migrations/testdb"
)

// historyTable is the table of TestHistoryCommand's six events: five of the task id, and the creation of another.
func historyTable(t *testing.T, entries []map[string]any, id, other string) string {
	t.Helper()
	at := func(i int) string {
		recorded, err := time.Parse(time.RFC3339Nano, entries[i]["recorded_at"].(string))
		if err != nil {
			t.Fatal(err)
		}
		return recorded.In(time.FixedZone("IST", 5*3600+1800)).Format(time.DateTime)
	}
	request := func(i int) string { return "u   " + entries[i]["request_id"].(string) }
	end, long := id[len(id)-shownID:], strings.TrimSuffix(strings.Repeat("long ", 20), " ")+" "
	wide := func(text string) string { return text + strings.Repeat(" ", len(long)-len(text)) + "  " }
	none := strings.Repeat(" ", 12) + "  "
	from := func(text string) string { return text + strings.Repeat(" ", len(`a\x1b[31m\u202e`)-len(text)) + "  " }
	return strings.Join([]string{
		"TIME (IST)           WHAT         TASK          " + from("FROM") + wide("TO") + "BY  REQUEST",
		at(0) + "  created      " + end + "  " + from("") + wide(`a\x1b[31m\u202e`) + request(0),
		"                     description  " + none + from("") + `""`,
		at(1) + "  completed    " + end + "  " + from("false") + wide("true") + request(1),
		at(2) + "  renamed      " + end + "  " + from(`a\x1b[31m\u202e`) + wide("b") + request(2),
		at(3) + "  described    " + end + "  " + from(`""`) + wide(`two\nlines`) + request(3),
		at(4) + "  deleted      " + end + "  " + from("false") + wide("true") + request(4),
		at(5) + "  created      " + other[len(other)-shownID:] + "  " + from("") + wide(long) + request(5),
		"",
	}, "\n")
}

// An operator reads what happened: as a table, as JSON, of one task, of a time, and where no server runs.
func TestHistoryCommand(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + testdb.URL(t), "BETTER_AUTH_SECRET=" + serveSecret, "TZ=Asia/Kolkata"}
	s := startServer(t, env...)
	id := s.must(201, "u", "POST", "/api/tasks",
		`{"title":"a\u001b[31m\u202e","description":"","is_completed":true}`)["id"].(string)
	s.must(200, "u", "PATCH", "/api/tasks/"+id, `{"title":"b","description":"two\nlines"}`)
	s.must(204, "u", "DELETE", "/api/tasks/"+id, "")
	other := s.must(201, "u", "POST", "/api/tasks", `{"title":"`+strings.Repeat("long ", 20)+`"}`)["id"].(string)
	entries := s.entries("u")
	s.terminate() // the last event may not be shown yet: nobody asks for it but the command

	want := historyTable(t, entries, id, other)
	if out := output(t, env, "", "history", "--user", "u"); out != want {
		t.Errorf("\n%s, want\n%s", out, want)
	}
	count := func(args ...string) int {
		return strings.Count(output(t, env, "", append([]string{"history", "--user", "u", "--json"}, args...)...), "\n")
	}
	third := entries[2]["recorded_at"].(string)
	for _, tc := range []struct {
		want int
		args []string
	}{
		{6, nil}, {5, []string{"--task", id}}, {5, []string{"--task", id[len(id)-shownID:]}},
		{1, []string{"--task", other}}, {0, []string{"--task", "000000000000"}},
		{4, []string{"--since", "2"}}, {2, []string{"--until", "2"}}, {1, []string{"--since", "2", "--until", "3"}},
		{4, []string{"--until", third}}, {2, []string{"--since", third}}, {0, []string{"--until", "1999-12-31"}},
		{6, []string{"--since", "1999-12-31 23:59"}}, {6, []string{"--until", "2999-01-01T00:00"}},
		{0, []string{"--since", "7"}},
	} {
		if got := count(tc.args...); got != tc.want {
			t.Errorf("%v: %d entries, want %d", tc.args, got, tc.want)
		}
	}
	var entry map[string]any
	line, _, _ := strings.Cut(output(t, env, "", "history", "--user", "u", "--json"), "\n")
	err := json.Unmarshal([]byte(line), &entry)
	if err != nil || len(entry) != 8 || entry["hash"] != entries[0]["hash"] {
		t.Errorf("%v: %s", err, line)
	}
	for _, args := range [][]string{
		{"--user", "nobody"}, {"--user", "u", "--since", "soon"}, {"--user", "u", "--task", "x"}, {},
	} {
		got := finish(t, program(t, env, append([]string{"history"}, args...)...))
		if got.code == 0 || got.stdout != "" || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%v: %+v", args, got)
		}
	}
}

// entries is a user's history, oldest first.
func (s *served) entries(user string) (found []map[string]any) {
	s.t.Helper()
	_, text := s.fetch(user, "/api/history?order=asc")
	if err := json.Unmarshal([]byte(text), &found); err != nil {
		s.t.Fatalf("%v: %s", err, text)
	}
	return found
}

// More than a page of history, and the end of it not shown by anybody yet.
func TestHistoryOfManyEvents(t *testing.T) {
	t.Parallel()
	url := testdb.URL(t)
	const n = 2*historyPage + 1
	execute(t, url, `
		INSERT INTO taskledger.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		SELECT 'u', n, '0190a5c2-7b1e-7c3a-9f10-3d2b1a0c9e8f',
			CASE WHEN n = 1 THEN 'TaskCreated' WHEN n % 2 = 0 THEN 'TaskCompleted' ELSE 'TaskReopened' END, 1,
			CASE WHEN n = 1 THEN '{"title":"Many","description":null}' ELSE '{}' END::jsonb,
			gen_random_uuid(), gen_random_uuid(), 'u', 'r', clock_timestamp()
		FROM generate_series(1, 1001) n`)
	out := output(t, []string{"DATABASE_URL=" + url}, "", "history", "--user", "u")
	if strings.Count(out, "\n") != n+1 || strings.Count(out, "TIME") != 1 ||
		!strings.HasSuffix(out, "reopened   3d2b1a0c9e8f  true   false  u   r\n") {
		t.Errorf("%d lines, the last is %q", strings.Count(out, "\n"), out[max(0, len(out)-100):])
	}
}

func TestTableFitsTheTerminal(t *testing.T) {
	t.Parallel()
	entry := jsontext.Value(
		`{"seq":1,"type":"TaskRenamed","task_id":"0190a5c2-7b1e-7c3a-9f10-3d2b1a0c9e8f",
		"recorded_at":"2026-11-22T19:43:57.105086Z","actor":"u\u001b]0;evil\u0007",
		"request_id":"0190a5c2-7b1e-7c3a-9f10-3d2b1a0c9e8f",
		"changes":{"title":{"from":"日本語日本語日本語日本語日本語",
		"to":"👩‍👩‍👧‍👦👩‍👩‍👧‍👦 e\u0301e\u0301e\u0301 \u200b\u2066\u0085\u00a0\u009b31m family and more"}}}`,
	)
	control := regexp.MustCompile(`[\x00-\x09\x0b-\x1f\x7f-\x{9f}\x{200b}\x{202a}-\x{202e}\x{2066}-\x{2069}]`)
	for _, width := range []int{0, 500, 120, 80, 72, 20} {
		var out strings.Builder
		if err := (&table{width: width}).print(&out, []jsontext.Value{entry}); err != nil {
			t.Fatal(err)
		}
		if bad := control.FindString(out.String()); bad != "" {
			t.Errorf("width %d: %q is in %q", width, bad, out.String())
		}
		for line := range strings.Lines(out.String()) {
			if got := uniseg.StringWidth(strings.TrimSuffix(line, "\n")); width >= 72 && got > width {
				t.Errorf("width %d: %d columns: %q", width, got, line)
			}
		}
		if whole := strings.Contains(
			out.String(),
			"👩‍👩‍👧‍👦👩‍👩‍👧‍👦 e\u0301e\u0301e\u0301 "+`\u200b\u2066\u0085 \u009b31m family and more`,
		); whole != (width == 0 || width == 500) {
			t.Errorf("width %d: %s", width, out.String())
		}
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		text  string
		width int
		want  string
	}{
		{"", 3, ""}, {"abc", 3, "abc"}, {"abcd", 3, "ab…"}, {"日本語", 6, "日本語"}, {"日本語", 5, "日本…"}, {"日本語", 4, "日…"},
		{"e\u0301e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301…"}, {"👩‍👩‍👧‍👦👩‍👩‍👧‍👦", 3, "👩‍👩‍👧‍👦…"},
	} {
		if got := cut(tc.text, tc.width); got != tc.want {
			t.Errorf("cut(%q, %d) = %q, want %q", tc.text, tc.width, got, tc.want)
		}
	}
}
