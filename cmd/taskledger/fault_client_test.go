package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"taskledger/httpapi/auth"
)

// account is a user as its clients know it.
type account struct {
	user, token string
	shared      bool // by two clients
	listener    *listener

	mu     sync.Mutex
	ids    []string         // of tasks that were created
	tasks  map[string]state // as the answers tell
	orders []*order         // settled, each client's in its order
}

func openAccount(t *testing.T, user string) *account {
	t.Helper()
	token, err := auth.SignToken([]byte(serveSecret), user, "", "", time.Now(), 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return &account{user: user, token: token, tasks: map[string]state{}}
}

// state is a task as the model has it.
type state struct {
	title       string
	description *string
	completed   bool
	deleted     bool
	version     int64
	answer      string // the last answer's body
}

// order is one command and, once it is settled, its answer.
type order struct {
	op                      string
	id                      string // of the task; of a creation, what the server chose
	title                   string // empty: not given
	description             *string
	describe                bool // the description is given
	completed               *bool
	ifMatch                 int64 // 0: not given
	key, method, path, body string
	foreseen                int // the status, 0 where another client of the user may be first
	answer                  answer
	changed                 bool // it leaves events; of users that are shared, known when the history was read
}

// answer is what of an answer must be the same each time.
type answer struct {
	status                        int
	body, etag, location, version string
}

// send sends a request once, and holds each answer against what is promised of answers in bad times.
func (s *stage) send(ctx context.Context, n *node, a *account, o *order) (answer, error) {
	base, _ := n.address()
	req, err := http.NewRequestWithContext(ctx, o.method, base+o.path, strings.NewReader(o.body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Authorization", "Bearer "+a.token)
	if o.key != "" {
		req.Header.Set("Idempotency-Key", o.key)
		req.Header.Set("X-Request-Id", o.key)
	}
	if o.ifMatch != 0 {
		req.Header.Set("If-Match", `"`+strconv.FormatInt(o.ifMatch, 10)+`"`)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		s.see(0)
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.see(0)
		return answer{}, err
	}
	s.see(resp.StatusCode)
	if resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") == "" {
		s.t.Errorf("%s %s: 503 without Retry-After: %s", o.method, o.path, body)
	}
	if resp.StatusCode >= 500 && resp.StatusCode != http.StatusServiceUnavailable {
		s.t.Errorf("%s %s: %d %s; the server said:\n%s", o.method, o.path, resp.StatusCode, body, n.stderr)
	}
	return answer{
		status: resp.StatusCode, body: string(body), etag: resp.Header.Get("ETag"),
		location: resp.Header.Get("Location"), version: resp.Header.Get("X-Version"),
	}, nil
}

// see counts an answer; 0 is none.
func (s *stage) see(status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if status == 0 {
		s.broken++
		return
	}
	s.answers[status]++
}

func (s *stage) get(n *node, path string) (int, error) {
	base, _ := n.address()
	resp, err := s.http.Get(base + path)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// settle sends a request until it is answered, to whichever server. It does not end with the faults.
func (s *stage) settle(a *account, o *order, random *rand.Rand) answer {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	for {
		got, err := s.send(ctx, s.nodes[random.IntN(len(s.nodes))], a, o)
		if err == nil && got.status < 500 {
			return got
		}
		if !rest(ctx, random, 10*time.Millisecond, 100*time.Millisecond) {
			s.t.Errorf("%s %s is not answered in %v: %d %v", o.method, o.path, patience, got.status, err)
			return got
		}
	}
}

// client sends commands of one user, one after the other.
type client struct {
	stage   *stage
	account *account
	random  *rand.Rand
	number  int // among the clients of the user
}

func (c *client) run(ctx context.Context) {
	for n := 0; ; n++ {
		o := c.compose(n)
		c.carryOut(o)
		if c.stage.t.Failed() {
			return
		}
		if c.random.IntN(20) == 0 {
			c.repeatOne()
		}
		if c.random.IntN(10) == 0 && !c.account.shared {
			c.read(o)
		}
		if !rest(ctx, c.random, 0, 60*time.Millisecond) {
			return
		}
	}
}

// carryOut settles a command: some are sent twice at once.
func (c *client) carryOut(o *order) {
	var twin answer
	var both sync.WaitGroup
	twice := !c.account.shared && c.random.IntN(10) == 0
	if twice {
		own := rand.New(rand.NewPCG(c.random.Uint64(), 0))
		both.Go(func() { twin = c.stage.settle(c.account, o, own) })
	}
	o.answer = c.stage.settle(c.account, o, c.random)
	both.Wait()
	if twice && twin != o.answer {
		c.stage.t.Errorf("%s, sent twice at once: %+v and %+v", o.describeIt(), o.answer, twin)
	}
	if o.foreseen != 0 && o.answer.status != o.foreseen {
		c.stage.t.Errorf("%s: answered with %+v, want %d", o.describeIt(), o.answer, o.foreseen)
	}
	if o.foreseen == 0 && !slices.Contains([]int{200, 201, 204, 404, 412}, o.answer.status) {
		c.stage.t.Errorf("%s: answered with %+v", o.describeIt(), o.answer)
	}
	c.account.learn(c.stage.t, o)
}

func (o *order) describeIt() string {
	return fmt.Sprintf("%s %s %s (key %s, if-match %d, op %s)", o.method, o.path, o.body, o.key, o.ifMatch, o.op)
}

// learn takes the answer of a settled command into the model.
func (a *account) learn(t *testing.T, o *order) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.orders = append(a.orders, o)
	switch {
	case o.answer.status == http.StatusNoContent:
		s := a.tasks[o.id]
		s.deleted = true
		a.tasks[o.id] = s
	case o.answer.status < 300:
		task, err := readTask(o.answer.body)
		if err != nil {
			t.Errorf("%s: %v in %+v", o.describeIt(), err, o.answer)
			return
		}
		if o.op == "create" {
			o.id = task.ID
			a.ids = append(a.ids, o.id)
		}
		if s := a.tasks[o.id]; task.Version >= s.version {
			next := task.state(o.answer.body)
			next.deleted = s.deleted
			a.tasks[o.id] = next
		}
	}
}

type taskAnswer struct {
	ID          string  `json:"id"`
	Title       string  `json:"title"`
	Description *string `json:"description"`
	Completed   bool    `json:"is_completed"`
	Version     int64   `json:"version"`
}

func readTask(body string) (task taskAnswer, err error) {
	return task, json.Unmarshal([]byte(body), &task)
}

func (t taskAnswer) state(body string) state {
	return state{title: t.Title, description: t.Description, completed: t.Completed, version: t.Version, answer: body}
}

// repeatOne sends a command again that was settled long ago.
func (c *client) repeatOne() {
	c.account.mu.Lock()
	o := c.account.orders[c.random.IntN(len(c.account.orders))]
	c.account.mu.Unlock()
	if !o.stored() {
		return
	}
	if again := c.stage.settle(c.account, o, c.random); again != o.answer {
		c.stage.t.Errorf("%s: first answered with %+v, then with %+v", o.describeIt(), o.answer, again)
	}
}

// read looks at what the last command left, which no other client changes.
func (c *client) read(last *order) {
	if last.id == "" || last.answer.version == "" {
		return
	}
	look := &order{method: "GET", path: "/api/tasks/" + last.id + "?min_version=" + last.answer.version}
	want := c.account.tasks[last.id]
	got := c.stage.settle(c.account, look, c.random)
	if want.deleted && got.status == http.StatusNotFound ||
		got.status == http.StatusOK && got.body == want.answer && !want.deleted {
		return
	}
	c.stage.t.Errorf(
		"after %s, answered with %+v: a read gives %+v, want %+v",
		last.describeIt(),
		last.answer,
		got,
		want,
	)
}

// compose makes a command up.
func (c *client) compose(n int) *order {
	c.account.mu.Lock()
	defer c.account.mu.Unlock()
	o := &order{op: "create", key: fmt.Sprintf("%s.%d.%d", c.account.user, c.number, n)}
	if len(c.account.ids) > 0 {
		o.op = []string{
			"create", "create", "update", "update", "update", "toggle", "complete", "reopen", "delete",
		}[c.random.IntN(9)]
	}
	if o.op != "create" {
		// Mostly young ones: the old are mostly deleted.
		back := min(c.random.IntN(12), len(c.account.ids)-1)
		o.id = c.account.ids[len(c.account.ids)-1-back]
	}
	before := c.account.tasks[o.id]
	if o.op != "create" && c.random.IntN(3) == 0 {
		o.ifMatch = max(1, before.version-int64(c.random.IntN(5)/4))
	}
	c.fill(o, n)
	o.address()
	if !c.account.shared {
		var types []string
		o.foreseen, _, types = o.effect(before)
		o.changed = len(types) > 0
	}
	return o
}

// fill gives a creation or an update its members.
func (c *client) fill(o *order, n int) {
	if o.op != "create" && o.op != "update" {
		return
	}
	if o.op == "create" || c.random.IntN(2) == 0 {
		o.title = fmt.Sprintf("title %d", n-c.random.IntN(2))
	}
	if c.random.IntN(3) == 0 {
		o.describe = true
		if c.random.IntN(3) > 0 {
			o.description = new(fmt.Sprintf("description %d", n))
		}
	}
	if c.random.IntN(3) == 0 {
		o.completed = new(c.random.IntN(2) == 0)
	}
}

// address gives the command its method, path and body.
func (o *order) address() {
	methods := map[string]string{
		"create":   "POST",
		"update":   "PATCH",
		"toggle":   "PATCH",
		"complete": "PUT",
		"reopen":   "DELETE",
		"delete":   "DELETE",
	}
	o.method, o.path = methods[o.op], "/api/tasks"
	if o.op != "create" {
		o.path += "/" + o.id
	}
	if slices.Contains([]string{"toggle", "complete", "reopen"}, o.op) {
		o.path += "/complete"
	}
	members := map[string]any{}
	if o.title != "" {
		members["title"] = o.title
	}
	if o.describe {
		members["description"] = o.description
	}
	if o.completed != nil {
		members["is_completed"] = *o.completed
	}
	if o.op == "create" || o.op == "update" {
		body, _ := json.Marshal(members) // texts and booleans
		o.body = string(body)
	}
}
