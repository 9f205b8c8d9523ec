package main

import (
	"strings"
	"testing"

	"taskledger/migrations/testdb"
)

// An operator erases a user while servers run: they know at once, and tell who listens.
func TestEraseCommand(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + testdb.URL(t), "BETTER_AUTH_SECRET=" + serveSecret}
	s := startServer(t, env...)
	id := s.must(201, "u", "POST", "/api/tasks", `{"title":"very private"}`)["id"].(string)
	s.must(200, "u", "GET", "/api/tasks/"+id, "")
	s.must(201, "v", "POST", "/api/tasks", `{"title":"stays"}`)
	kept := s.must(200, "u", "GET", "/api/ledger", "")["hash"].(string)
	live := s.stream("u")

	if out := output(t, env, "", "erase", "--user", "u"); out != "erased user \"u\"; event 2 is the proof\n" {
		t.Errorf("erase: %s", out)
	}
	hear(t, live, "event: erased")
	s.must(404, "u", "GET", "/api/tasks/"+id, "")
	if entries := s.entries(
		"u",
	); len(entries) != 1 || entries[0]["type"] != "UserErased" ||
		entries[0]["actor"] != "system" {
		t.Errorf("the history is %v", entries)
	}
	export := output(t, env, "", "export")
	if strings.Contains(export, "private") || !strings.Contains(export, `"data":{"hash":"`+kept+`"}`) ||
		!strings.Contains(export, "stays") {
		t.Errorf("the export is %s", export)
	}
	if out := output(t, env, "", "erase", "--user", "u", "--yes"); !strings.Contains(out, "erased before, at event 2") {
		t.Errorf("again: %s", out)
	}
	if next := s.must(201, "u", "POST", "/api/tasks", `{"title":"a new life"}`); next["version"] != 3.0 {
		t.Errorf("the next version is %v", next["version"])
	}
	output(t, env, "", "verify")
	s.terminate()

	for _, args := range [][]string{{"--user", "nobody"}, {"--user", ""}, {}} {
		got := finish(t, program(t, env, append([]string{"erase"}, args...)...))
		if got.code == 0 || got.stdout != "" || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%v: %+v", args, got)
		}
	}
	// Without a server too.
	output(t, env, "", "erase", "--user", "v", "--yes")
	if out := output(
		t,
		env,
		"",
		"history",
		"--user",
		"v",
	); strings.Count(out, "\n") != 2 ||
		!strings.Contains(out, "erased") {
		t.Errorf("the history is %s", out)
	}
	output(t, env, "", "verify")
}
