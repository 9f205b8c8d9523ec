package httpapi

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

// go test ./httpapi -run Model -args -model.duration=5m -model.seed=7
var (
	modelDuration = flag.Duration("model.duration", 4*time.Second, "how long TestModel plays")
	modelSeed     = flag.Uint64("model.seed", 0, "seed of TestModel; 0 draws one")
)

const (
	modelUsers    = 3
	modelQuota    = 6
	modelCommands = 30 // between two looks at everything
)

// Three users send random commands to two processes: single ones and batches, right and wrong ones, reverts, restores,
// retries, erasures. Every answer, and then everything that can be read, now and as of every seq, is what a model has
// that was written from the contract.
func TestModel(t *testing.T) {
	t.Parallel()
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64N(1 << 32)
	}
	t.Logf(
		"to repeat: go test ./httpapi -run 'TestModel$' -args -model.duration=%v -model.seed=%d",
		*modelDuration,
		seed,
	)
	first := start(t).allow(modelQuota)
	services := []*service{first, startOn(t, first.pool).allow(modelQuota)}
	for _, s := range services {
		s.server.limits = newRateLimits(0, 0)
	}
	deadline := time.Now().Add(*modelDuration)
	var users sync.WaitGroup
	var commands [modelUsers]int
	for i := range modelUsers {
		users.Go(func() {
			p := &player{
				t: t, services: services, u: newModelUser(fmt.Sprint("user \"", i, "\" é"), modelQuota),
				rand: rand.New(rand.NewPCG(seed, uint64(i))),
			}
			p.play(deadline)
			commands[i] = p.n
		})
	}
	users.Wait()
	first.verified()
	t.Logf("%d commands", commands)
}

// player plays one user.
type player struct {
	t        *testing.T
	services []*service
	u        *modelUser
	rand     *rand.Rand
	n        int      // commands
	ids      []string // of all tasks there ever were
}

func (p *player) play(deadline time.Time) {
	l := &hearer{p: p, rand: rand.New(rand.NewPCG(p.rand.Uint64(), 0))}
	var hearing sync.WaitGroup
	hearing.Go(l.run)
	for !p.t.Failed() {
		for range modelCommands {
			p.step()
			if p.t.Failed() {
				break
			}
			p.glance()
		}
		p.check()
		if time.Now().After(deadline) {
			break
		}
	}
	if !p.t.Failed() {
		p.any().eventually(func() bool { return l.at() == p.u.head() })
	}
	l.end()
	hearing.Wait()
	l.check()
}

func (p *player) any() *service { return p.services[p.rand.IntN(len(p.services))] }

// chance is true so many times of a hundred.
func (p *player) chance(percent int) bool { return p.rand.IntN(100) < percent }

func pick[T any](p *player, from ...T) T { return from[p.rand.IntN(len(from))] }

func (p *player) errorf(format string, args ...any) {
	p.t.Errorf("%s, command %d: %s", p.u.name, p.n, fmt.Sprintf(format, args...))
}

// step carries out one request.
func (p *player) step() {
	p.n++
	switch {
	case p.chance(2):
		p.erase()
	case p.chance(8) && len(p.u.keys) > 0:
		p.again()
	case p.chance(25):
		p.batch()
	default:
		p.single()
	}
}

// glance reads a little of what there is now: a read on any process shows every write that was acknowledged before it.
func (p *player) glance() {
	for range p.rand.IntN(4) {
		switch id := p.someID(); {
		case p.chance(20):
			p.same("/api/tasks?", p.u.list(p.u.now(), modelList{}))
		case p.chance(10):
			p.same("/api/trash?", p.u.trash())
		default:
			status, want := 404, ""
			if t := p.u.now()[id]; t.version > 0 && t.deleted == 0 {
				status, want = 200, p.u.render(t)
			}
			if a := p.any().
				do(call{method: "GET", path: "/api/tasks/" + id, user: p.u.name}); a.StatusCode != status ||
				status == 200 && string(a.body) != want {
				p.errorf("%s is %d %s, want %d %s", id, a.StatusCode, a.body, status, want)
			}
		}
	}
}

// someID is the id of a task, most likely of a late one.
func (p *player) someID() string {
	if len(p.ids) == 0 || p.chance(5) {
		return uuid.NewString()
	}
	return p.ids[max(0, len(p.ids)-1-p.rand.IntN(12))]
}

// compose makes a command, sensible or not.
func (p *player) compose(ops ...string) modelCommand {
	c := modelCommand{op: pick(p, ops...)}
	titles := []string{"apple", "Apple", "banana \"q\" \\", "Cherry \b\t\n\f\r \x01\x7f", "date \u2028 é 😀 <&>"}
	descriptions := []*string{nil, new(string), &titles[0], &titles[3], &titles[4]}
	switch c.op {
	case "create":
		c.title, c.description = &titles[p.rand.IntN(len(titles))], pick(p, descriptions...)
	case "update":
		if p.chance(50) {
			c.title = &titles[p.rand.IntN(len(titles))]
		}
		if c.describe = p.chance(50); c.describe {
			c.description = pick(p, descriptions...)
		}
	case "revert":
		c.version = pick(p, p.rand.Int64N(p.u.head()+2), p.u.first+p.rand.Int64N(p.u.head()-p.u.first+2))
	}
	if (c.op == "create" || c.op == "update") && p.chance(50) {
		completed := p.chance(50)
		c.completed = &completed
	}
	if c.op == "create" {
		return c
	}
	switch c.id = p.someID(); {
	case p.chance(20):
		c.ifMatch = p.u.now()[c.id].version
	case p.chance(10):
		c.ifMatch = 1 + p.rand.Int64N(p.u.head()+1)
	}
	return c
}

// members are those of a Task in a body.
func (c modelCommand) members() string {
	var out []string
	if c.title != nil {
		out = append(out, `"title":`+quote(*c.title))
	}
	if c.describe || c.description != nil {
		out = append(out, `"description":`+quoteOrNull(c.description))
	}
	if c.completed != nil {
		out = append(out, fmt.Sprintf(`"is_completed":%t`, *c.completed))
	}
	return "{" + strings.Join(out, ",") + "}"
}

// request is the command as a request of its own.
func (c modelCommand) request(p *player) call {
	path := "/api/tasks/" + c.id
	switch c.op {
	case "create":
		return call{method: "POST", path: "/api/tasks", body: c.members()}
	case "update":
		return call{method: pick(p, "PUT", "PATCH"), path: path, body: c.members()}
	case "toggle":
		return call{method: "PATCH", path: path + "/complete"}
	case "complete":
		return call{method: "PUT", path: path + "/complete"}
	case "reopen":
		return call{method: "DELETE", path: path + "/complete"}
	case "delete":
		return call{method: "DELETE", path: path}
	case "restore":
		return call{method: "POST", path: path + "/restore"}
	}
	return call{method: "POST", path: path + "/revert", body: fmt.Sprintf(`{"version":%d}`, c.version)}
}

// step is the command in a batch.
func (c modelCommand) step() string {
	out := `{"op":"` + c.op + `"`
	if c.id != "" {
		out += `,"id":"` + c.id + `"`
	}
	if c.ifMatch > 0 {
		out += fmt.Sprintf(`,"if_match":%d`, c.ifMatch)
	}
	if c.op == "create" || c.op == "update" {
		out += `,"data":` + c.members()
	}
	return out + "}"
}

// send sends a write, on a condition if ifMatch is not 0, and at times with a key.
func (p *player) send(c *call, ifMatch int64) answer {
	c.user, c.header = p.u.name, http.Header{"X-Request-Id": {fmt.Sprint("r", p.n)}}
	if ifMatch > 0 {
		c.header.Set("If-Match", fmt.Sprintf(`"%d"`, ifMatch))
	}
	if p.chance(40) {
		c.header.Set("Idempotency-Key", fmt.Sprint("k", p.n))
	}
	return p.any().do(*c)
}

// shown is what is told of a write: all of it is told again when the write is repeated.
func shown(a answer) string {
	return fmt.Sprintf(
		"%d %s, ETag %s, X-Version %s",
		a.StatusCode,
		a.body,
		a.Header.Get("ETag"),
		a.Header.Get("X-Version"),
	)
}

func (p *player) single() {
	c := p.compose(
		"create",
		"create",
		"create",
		"update",
		"update",
		"toggle",
		"complete",
		"reopen",
		"delete",
		"delete",
		"restore",
		"restore",
		"revert",
		"revert",
	)
	request := c.request(p)
	a := p.send(&request, c.ifMatch)
	try := p.u.try()
	status, after := try.do(c, madeIn(a.body))
	if a.StatusCode != status {
		p.errorf("%+v is answered with %d %s, want %d", request, a.StatusCode, a.body, status)
		return
	}
	if status >= 300 {
		return
	}
	p.keep(try, request)
	want := fmt.Sprintf("%d %s, ETag \"%d\", X-Version %d", status, p.u.render(after), after.version, p.u.head())
	if status == 204 {
		want = fmt.Sprintf("204 , ETag , X-Version %d", p.u.head())
	}
	p.answered(a, want, request, len(try.events) > 0)
}

// madeIn is the id in a Task.
func madeIn(body []byte) string {
	var task struct{ ID string }
	if err := json.Unmarshal(body, &task); err != nil || task.ID == "" {
		return uuid.NewString()
	}
	return task.ID
}

// keep takes over what was stored: its times, and its links of the chain, which are computed from the log.
func (p *player) keep(try *trial, request call) {
	for _, e := range try.events {
		if e.kind == "TaskCreated" {
			p.ids = append(p.ids, e.task)
		}
	}
	before := p.u.head()
	try.keep()
	p.learn(before, request)
}

// learn reads the events behind seq before from the log.
func (p *player) learn(before int64, request call) {
	rows, err := p.services[0].pool.Query(p.t.Context(), `
		SELECT to_jsonb(e) - '{position,idempotency_key,request_fingerprint,recorded_at}'::text[],
			to_char(e.recorded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
		FROM taskledger.task_events e
		WHERE e.user_id = $1 AND e.seq > $2
		ORDER BY e.seq`, p.u.name, before)
	if err != nil {
		p.t.Error(err)
		return
	}
	defer rows.Close()
	seq, command := before, ""
	for rows.Next() {
		var text, at string
		var record map[string]any
		if err := rows.Scan(&text, &at); err != nil {
			p.t.Error(err)
			return
		}
		decoder := json.NewDecoder(strings.NewReader(text))
		decoder.UseNumber()
		if err := decoder.Decode(&record); err != nil {
			p.t.Error(err)
			return
		}
		if seq++; seq > p.u.head() {
			p.errorf("%+v has stored more than it should: %s", request, text)
			return
		}
		record["recorded_at"] = at
		e := &p.u.events[seq-1]
		e.time, e.requestID = at, request.header.Get("X-Request-Id")
		id, of := record["task_id"].(string)
		if record["type"] != e.kind || id != e.task || of == (e.kind == "UserErased") ||
			record["seq"] != json.Number(strconv.FormatInt(seq, 10)) ||
			record["request_id"] != e.requestID || command != "" && record["command_id"] != command ||
			seq > 1 && at < p.u.time(seq-1) {
			p.errorf("%+v has stored %s, want %+v", request, text, *e)
		}
		command = record["command_id"].(string)
		if e.kind == "UserErased" && canonical(record["data"]) != `{"hash":"`+p.u.hashes[before]+`"}` {
			p.errorf("the proof is %s, the last link was %s", text, p.u.hashes[before])
		}
		link, err := hex.DecodeString(p.u.hashes[seq-1])
		if err != nil {
			p.t.Error(err)
		}
		sum := sha256.Sum256(append(link, canonical(record)...))
		p.u.hashes = append(p.u.hashes, hex.EncodeToString(sum[:]))
	}
	if rows.Err() != nil || seq != p.u.head() {
		p.errorf("%+v has stored events to %d, want %d; %v", request, seq, p.u.head(), rows.Err())
	}
}

// answered compares an answer with the one that is due, and remembers it under its key.
func (p *player) answered(a answer, want string, request call, stored bool) {
	if got := shown(a); got != want || a.Header.Get("Idempotency-Replayed") != "" {
		p.errorf("%+v\nis answered with %s\nwant             %s", request, got, want)
	}
	if key := request.header.Get("Idempotency-Key"); key != "" && stored {
		p.u.keys[key] = modelReplay{request, want}
	}
}

func (p *player) batch() {
	commands, steps := make([]modelCommand, 1+p.rand.IntN(6)), []string{}
	for i := range commands {
		c := p.compose("create", "create", "update", "complete", "reopen", "delete", "restore")
		switch {
		case c.op == "create" && p.chance(40):
			c.id = uuid.NewString()
			p.ids = append(p.ids, c.id) // so that later ones may name it
		case c.op == "create" && p.chance(5) && len(p.ids) > 0:
			c.id = pick(p, p.ids...)
		case c.op != "create" && p.chance(20) && i > 0 && commands[i-1].id != "":
			c.id, c.ifMatch = commands[i-1].id, 0
		}
		commands[i] = c
		steps = append(steps, c.step())
	}
	request := batchOf("", steps...)
	a := p.send(&request, 0)
	var answered struct {
		Results []json.RawMessage
		Index   *int
	}
	if err := json.Unmarshal(a.body, &answered); err != nil {
		p.errorf("%+v is answered with %s", request, a.body)
		return
	}
	try := p.u.try()
	results := make([]*modelTask, len(commands))
	for i, c := range commands {
		made := c.id
		if made == "" && i < len(answered.Results) {
			made = madeIn(answered.Results[i])
		} else if made == "" {
			made = uuid.NewString()
		}
		status, after := try.do(c, made)
		if status >= 300 {
			if a.StatusCode != status || answered.Index == nil || *answered.Index != i {
				p.errorf("%+v is answered with %d %s, want %d of command %d", request, a.StatusCode, a.body, status, i)
			}
			return
		}
		if after.deleted == 0 {
			results[i] = &after
		}
	}
	if a.StatusCode != 200 {
		p.errorf("%+v is answered with %d %s", request, a.StatusCode, a.body)
		return
	}
	p.keep(try, request)
	texts := make([]string, len(results))
	for i, r := range results {
		if texts[i] = "null"; r != nil {
			texts[i] = p.u.render(*r)
		}
	}
	want := fmt.Sprintf("200 {\"results\":[%s]}, ETag , X-Version %d", strings.Join(texts, ","), p.u.head())
	p.answered(a, want, request, len(try.events) > 0)
}

// again repeats a request, or uses its key for another one.
func (p *player) again() {
	keys := make([]string, 0, len(p.u.keys))
	for key := range p.u.keys {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	before := p.u.keys[pick(p, keys...)]
	if p.chance(20) {
		other := before.call
		other.method, other.path, other.body = "POST", "/api/tasks", `{"title":"never asked for before"}`
		if a := p.any().do(other); a.StatusCode != 422 || !strings.Contains(string(a.body), "idempotency_key_reused") {
			p.errorf("another request under a key is answered with %d %s", a.StatusCode, a.body)
		}
		return
	}
	a := p.any().do(before.call)
	if got := shown(a); got != before.answer || a.Header.Get("Idempotency-Replayed") != "true" {
		p.errorf("%+v\nis now answered with %s\nfirst                %s", before.call, got, before.answer)
	}
}

func (p *player) erase() {
	before := p.u.head()
	request := call{method: "DELETE", path: "/api/me"}
	a := p.send(&request, 0)
	stored := p.u.erase()
	if stored {
		p.learn(before, request)
	}
	p.answered(a, fmt.Sprintf("204 , ETag , X-Version %d", p.u.head()), request, stored)
}

// get reads what must be there.
func (p *player) get(path string) (body string, header http.Header) {
	s := p.any()
	req, err := http.NewRequestWithContext(p.t.Context(), "GET", s.http.URL+path, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.token(p.u.name))
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		p.errorf("%s: %d %s %v", path, resp.StatusCode, text, err)
	}
	return string(text), resp.Header
}

// items reads a list page by page.
func (p *player) items(path string, limit int) (items []string) {
	path += "&limit=" + strconv.Itoa(limit)
	for path != "" && !p.t.Failed() {
		body, header := p.get(path)
		var page []json.RawMessage
		if err := json.Unmarshal([]byte(body), &page); err != nil || len(page) > limit {
			p.errorf("%s: %s, %v", path, body, err)
		}
		for _, item := range page {
			items = append(items, string(item))
		}
		path = ""
		if link := header.Get("Link"); link != "" {
			path = link[1:strings.Index(link, ">")]
		}
	}
	return items
}

// same compares a list, read in pages of some size, with the one that is due.
func (p *player) same(path string, want []string) {
	if got := p.items(path, pick(p, 1, 2, 3, 500)); !slices.Equal(got, want) && !p.t.Failed() {
		p.errorf("%s\ngives %s\nwant  %s", path, strings.Join(got, "\n      "), strings.Join(want, "\n      "))
	}
}

func (p *player) filter() (l modelList, query string) {
	l = modelList{
		pick(
			p,
			"",
			"all",
			"pending",
			"completed",
		),
		pick(p, "", "created_at", "title", "updated_at"),
		pick(p, "", "asc", "desc"),
		pick(p, "", "", "AN", "cherry \b", "é 😀", "\u2028", "apple", "zz"),
	}
	values := url.Values{}
	for name, value := range map[string]string{"status": l.status, "sort": l.sort, "order": l.order, "q": l.search} {
		if value != "" {
			values.Set(name, value)
		}
	}
	return l, values.Encode()
}

// check compares everything that can be read.
func (p *player) check() {
	l, filter := p.filter()
	p.same("/api/tasks?"+filter, p.u.list(p.u.now(), l))
	p.same("/api/trash?", p.u.trash())
	p.checkHistory()
	for seq := range p.u.head() + 1 {
		if p.t.Failed() {
			return
		}
		if p.u.first > 3 && seq < p.u.first-3 && !p.chance(5) {
			continue // of a life long ago there is nothing
		}
		p.checkAsOf(seq)
		p.checkSync(seq)
	}
}

func (p *player) checkAsOf(seq int64) {
	l, filter := p.filter()
	p.same(fmt.Sprintf("/api/tasks?as_of=%d&%s", seq, filter), p.u.list(p.u.states[seq], l))
	if seq == 0 {
		return
	}
	at := p.u.time(seq)
	p.same(fmt.Sprintf("/api/tasks?as_of=%s&%s", at, filter), p.u.list(p.u.states[p.u.at(at)], l))
	if seq < max(p.u.first, 1) {
		return
	}
	e := p.u.events[seq-1]
	if task, there := p.u.states[seq][e.task]; there && task.deleted == 0 {
		if body, header := p.get(
			fmt.Sprintf("/api/tasks/%s?as_of=%d", e.task, seq),
		); body != p.u.render(task) ||
			header.Get("ETag") != fmt.Sprintf(`"%d"`, task.version) {
			p.errorf("%s as of %d: %s, want %s", e.task, seq, body, p.u.render(task))
		}
	}
	want := fmt.Sprintf(`{"seq":%d,"hash":"%s","recorded_at":"%s"}`, seq, p.u.hashes[seq], at)
	if body, _ := p.get(fmt.Sprintf("/api/ledger?seq=%d", seq)); body != want {
		p.errorf("link %d: %s, want %s", seq, body, want)
	}
}

// checkSync brings a copy of the tasks as they were up to now.
func (p *player) checkSync(since int64) {
	has := map[string]string{}
	for id, t := range p.u.states[since] {
		if t.deleted == 0 {
			has[id] = p.u.render(t)
		}
	}
	lost := since > 0 && since < p.u.first
	if lost {
		has["of the old life"] = ""
	}
	at, limit, seen := since, pick(p, 1, 2, 5, 500), map[string]bool{}
	for more := true; more && !p.t.Failed(); {
		body, _ := p.get(fmt.Sprintf("/api/sync?since=%d&limit=%d", at, limit))
		var page struct {
			Changes []struct {
				Op      string
				Task    json.RawMessage
				ID      string
				Version int64
			}
			Version int64
			HasMore bool `json:"has_more"`
			Reset   bool
		}
		if err := json.Unmarshal(
			[]byte(body),
			&page,
		); err != nil || len(page.Changes) > limit ||
			page.Reset != (lost && at == since) {
			p.errorf("sync from %d: %s, %v", at, body, err)
			return
		}
		if page.Reset {
			clear(has)
			at = 0
		}
		for _, c := range page.Changes {
			if c.Op == "upsert" {
				c.ID = madeIn(c.Task)
				c.Version = p.u.now()[c.ID].version
				has[c.ID] = string(c.Task)
			} else if delete(has, c.ID); c.Op != "delete" || c.Version != p.u.now()[c.ID].version {
				p.errorf("sync from %d: %s", since, body)
			}
			if c.Version <= at || seen[c.ID] {
				p.errorf("sync from %d tells of %s at %d behind %d: %s", since, c.ID, c.Version, at, body)
			}
			at, seen[c.ID] = c.Version, true
		}
		at, more = page.Version, page.HasMore
	}
	var got []string
	for _, text := range has {
		got = append(got, text)
	}
	want := p.u.list(p.u.now(), modelList{})
	slices.Sort(got)
	slices.Sort(want)
	if (at != p.u.head() || !slices.Equal(got, want)) && !p.t.Failed() {
		p.errorf(
			"sync from %d gives, at %d of %d,\n%s\nwant\n%s",
			since,
			at,
			p.u.head(),
			strings.Join(got, "\n"),
			strings.Join(want, "\n"),
		)
	}
}

func (p *player) checkHistory() {
	var whole []string
	for seq := max(p.u.first, 1); seq <= p.u.head(); seq++ {
		whole = append(whole, p.u.entry(seq)+"}")
	}
	ordered := func(entries []string, order string) []string {
		if order == "desc" {
			slices.Reverse(entries)
		}
		return entries
	}
	order := pick(p, "asc", "desc")
	p.same("/api/history?order="+order, ordered(slices.Clone(whole), order))
	for range 4 {
		order := pick(p, "asc", "desc")
		values := url.Values{"order": {order}}
		since, until := int64(0), p.u.head()
		if p.chance(50) && p.u.head() > 0 {
			since = p.rand.Int64N(p.u.head() + 1)
			values.Set("since", strconv.FormatInt(since, 10))
			if since > 0 && p.chance(50) {
				values.Set("since", p.u.time(since))
				since = p.u.at(p.u.time(since))
			}
		}
		if p.chance(50) && p.u.head() > 0 {
			until = 1 + p.rand.Int64N(p.u.head())
			values.Set("until", strconv.FormatInt(until, 10))
			if p.chance(50) {
				values.Set("until", p.u.time(until))
				until = p.u.at(p.u.time(until))
			}
		}
		var kind, id string
		if p.chance(40) {
			kind = pick(
				p,
				"TaskCreated",
				"TaskRenamed",
				"TaskCompleted",
				"TaskDeleted",
				"TaskRestored",
				"UserErased",
				"TaskImported",
			)
			values.Set("type", kind)
		}
		if p.chance(40) && len(p.ids) > 0 {
			id = p.ids[len(p.ids)-1-p.rand.IntN(min(8, len(p.ids)))]
			values.Set("task_id", id)
		}
		var want []string
		for i, entry := range whole {
			seq := max(p.u.first, 1) + int64(i)
			e := p.u.events[seq-1]
			if seq > since && seq <= until && (kind == "" || e.kind == kind) && (id == "" || e.task == id) {
				want = append(want, entry)
			}
		}
		p.same("/api/history?"+values.Encode(), ordered(want, order))
		if id != "" && p.u.now()[id].version > 0 {
			want = nil
			for i, entry := range whole {
				if p.u.events[max(p.u.first, 1)+int64(i)-1].task == id {
					want = append(want, entry)
				}
			}
			p.same("/api/tasks/"+id+"/history?order="+order, ordered(want, order))
		}
	}
}

// hearer listens to the user's events, and loses its connection now and then.
type hearer struct {
	p    *player
	rand *rand.Rand

	mu     sync.Mutex
	heard  []frame
	last   int64
	ended  bool
	reader *reader
}

func (l *hearer) run() {
	for {
		s := l.p.services[l.rand.IntN(len(l.p.services))]
		l.mu.Lock()
		if l.ended {
			l.mu.Unlock()
			return
		}
		r := s.listen(l.p.u.name, strconv.FormatInt(l.last, 10))
		l.reader = r
		l.mu.Unlock()
		for range 1 + l.rand.IntN(10) {
			f, err := r.next()
			if err != nil {
				break
			}
			l.mu.Lock()
			l.heard, l.last = append(l.heard, f), f.ID
			l.mu.Unlock()
		}
		r.close()
	}
}

func (l *hearer) at() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

func (l *hearer) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended = true; l.reader != nil {
		l.reader.close()
	}
}

// check compares what was heard with what happened: each event once and in order, but for those that were erased before
// they could be told.
func (l *hearer) check() {
	last := int64(0)
	for _, f := range l.heard {
		if f.ID > l.p.u.head() || f.ID != last+1 && (f.ID <= last || f.Event != "erased") {
			l.p.errorf("a stream goes from %d to %s", last, f.raw)
			return
		}
		if got, want := f.Event+" "+f.raw, l.p.u.frame(f.ID); got != want && !l.p.t.Failed() {
			l.p.errorf("a stream tells\n%s\nwant\n%s", got, want)
		}
		last = f.ID
	}
}
