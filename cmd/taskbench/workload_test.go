package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestNewListsAreNewAndHaveAllTasks(t *testing.T) {
	t.Parallel()
	for _, tasks := range []int{1, 20, 100} {
		seen := map[string]bool{}
		for n := 0; ; n++ {
			path, ok := newList(n, tasks)
			if !ok {
				break
			}
			u, err := url.Parse(path)
			if err != nil || u.Path != "/api/tasks" {
				t.Fatalf("%s: %v", path, err)
			}
			values := u.Query()
			if limit, err := strconv.Atoi(values.Get("limit")); err != nil || limit <= max(tasks, 20) || limit >= 500 {
				t.Fatalf("limit of %s", path)
			}
			key := canonical(values)
			if seen[key] {
				t.Fatalf("%s was asked before", path)
			}
			seen[key] = true
		}
		if len(seen) < 4000 {
			t.Errorf("%d lists for %d tasks", len(seen), tasks)
		}
	}
}

// canonical is the same for two requests with the same answer.
func canonical(values url.Values) string {
	or := func(name, otherwise string) string {
		if values.Has(name) {
			return values.Get(name)
		}
		return otherwise
	}
	sort, order := or("sort", "created_at"), "desc"
	if sort == "title" {
		order = "asc"
	}
	return strings.Join([]string{values.Get("limit"), or("status", "all"), sort, or("order", order)}, " ")
}

// step runs a step of a workload n times, with a server that takes note of the requests.
func runSteps(t *testing.T, s step, n int, handler http.HandlerFunc) (requests []string, errs []error) {
	t.Helper()
	var mu sync.Mutex
	base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		requests = append(requests, r.Method+" "+r.RequestURI+" "+r.RemoteAddr)
		mu.Unlock()
		handler(w, r)
	})
	w := &worker{
		users:  []*user{{token: "a", tasks: []string{"1"}}, {token: "b", tasks: []string{"1"}}},
		random: rand.New(rand.NewPCG(1, 2)),
		conn:   newTestConn(t, base), readBack: newTestConn(t, base),
	}
	for range n {
		errs = append(errs, s(t.Context(), w))
	}
	mu.Lock()
	defer mu.Unlock()
	return requests, errs
}

func TestListsAreCounted(t *testing.T) {
	t.Parallel()
	three := func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `[{"version":1},{"version":2},{"version":3}]`)
	}
	tests := []struct {
		name  string
		tasks int
		step  func(*options) step
		want  string
	}{
		{"again", 3, (*options).listAgain, ""},
		{"again, too short", 4, (*options).listAgain, "200 3_tasks_not_4"},
		{"again, of more than are asked for", 30, (*options).listAgain, "200 3_tasks_not_20"},
		{"anew", 3, (*options).listAnew, ""},
		{"anew, too short", 30, (*options).listAnew, "200 3_tasks_not_30"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, errs := runSteps(t, tt.step(&options{Tasks: tt.tasks}), 1, three)
			if got := errs[0]; got == nil && tt.want != "" || got != nil && failureName(got) != tt.want {
				t.Errorf("got %v, want %q", got, tt.want)
			}
		})
	}
}

func TestListAnewEndsWhenAllIsAsked(t *testing.T) {
	t.Parallel()
	one := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `[{"version":1}]`) }
	// So many tasks that the lists are few; the server has less, which does not matter here.
	requests, errs := runSteps(t, (&options{Tasks: 498}).listAnew(), 2*len(newLists)+1, one)
	if len(requests) != 2*len(newLists) || failureName(errs[len(errs)-1]) != "no list left" {
		t.Errorf("%d requests, then %v", len(requests), errs[len(errs)-1])
	}
}

func TestReadsAndWrites(t *testing.T) {
	t.Parallel()
	requests, errs := runSteps(t, readsAndWrites, 2000, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusCreated)
		}
	})
	counts := map[string]int{}
	for i, r := range requests {
		path, _, _ := strings.Cut(r, " 127")
		counts[path]++
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
	}
	for path, want := range map[string]int{
		"GET /api/tasks?limit=20": 900, "GET /api/tasks/1": 900, "POST /api/tasks": 100,
		"PATCH /api/tasks/1/complete": 100,
	} {
		if got := counts[path]; got < want*2/3 || got > want*4/3 {
			t.Errorf("%s: %d of 2000 requests, want some %d", path, got, want)
		}
	}
}

func TestWriteReadDelete(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		read string // the answer to the read; empty: 404
		want string
		sent string
	}{
		{"there", `{"id":"7","title":"Made by taskbench","version":5}`, "", "POST GET DELETE"},
		{"not there", "", "miss", "POST GET"},
		{"older", `{"id":"7","title":"Made by taskbench","version":4}`, "miss", "POST GET"},
		{"other title", `{"id":"7","title":"Made","version":5}`, "miss", "POST GET"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			requests, errs := runSteps(t, writeReadDelete, 1, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.Method == http.MethodPost:
					w.WriteHeader(http.StatusCreated)
					fmt.Fprint(w, `{"id":"7","title":"Made by taskbench","version":5}`)
				case r.Method == http.MethodDelete:
					w.WriteHeader(http.StatusNoContent)
				case tt.read == "":
					problem(w, http.StatusNotFound, "not_found")
				default:
					fmt.Fprint(w, tt.read)
				}
			})
			if got := errs[0]; got == nil && tt.want != "" || got != nil && failureName(got) != tt.want {
				t.Errorf("got %v, want %q", got, tt.want)
			}
			var methods, from []string
			for _, r := range requests {
				fields := strings.Fields(r)
				methods, from = append(methods, fields[0]), append(from, fields[2])
			}
			if got := strings.Join(methods, " "); got != tt.sent || from[0] == from[1] {
				t.Errorf("sent %s from %v, want %s, the read on a connection of its own", got, from, tt.sent)
			}
		})
	}
}

func TestTurnsAreComparedByTheirRates(t *testing.T) {
	t.Parallel()
	rates := func(product, rival float64) [2]turn {
		return [2]turn{{total: newTally(), rate: product}, {total: newTally(), rate: rival}}
	}
	c := &cell{workload: workloads[0], connections: 16, rounds: [][2]turn{rates(10, 10), rates(30, 10), rates(10, 20)}}
	c.rounds[0][0].total.count(time.Now(), time.Now().Add(time.Millisecond))
	c.rounds[0][0].used = usage{server: 40 * time.Microsecond, postgres: 30 * time.Microsecond}
	c.rounds[1][1].total.errors["timeout"] = 2
	r := c.report(&options{})
	if r.Ratio != 1 || r.Least != .5 || r.Most != 3 || r.Target != 1.7 || r.ratioCell() != "**1.00 < 1.7**" {
		t.Errorf("%+v", r)
	}
	if s := r.Sides[0]; s.Rate != 10 || s.Requests != 1 || s.ServerCPU != 40 || s.PostgresCPU != 30 || s.P99 < 1 {
		t.Errorf("%+v", s)
	}
	if !(&comparison{Cells: []cellReport{r}}).broken() {
		t.Error("errors of the second side do not count")
	}
	if r := c.report(&options{Against: "x"}); r.Target != 0 || r.ratioCell() != "1.00" {
		t.Errorf("against another build: %+v", r)
	}
}

func TestWhatIsCompared(t *testing.T) {
	t.Parallel()
	opts, err := parse([]string{"--rival", "--workloads", "mixed,list"}, func(string) string { return "" }, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range opts.cells() {
		got = append(got, fmt.Sprint(c.workload.name, " ", c.connections))
	}
	if opts.Duration != 2*time.Second || opts.Warmup != 300*time.Millisecond {
		t.Errorf("for %s after %s", opts.Duration, opts.Warmup)
	}
	if want := "list 1, list 16, list 64, mixed 16, mixed 64"; strings.Join(got, ", ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}

func TestMedian(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		values []float64
		want   float64
	}{{[]float64{3}, 3}, {[]float64{3, 1}, 2}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 9, 2}, 3}} {
		if got := median(tt.values); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.values, got, tt.want)
		}
	}
}
