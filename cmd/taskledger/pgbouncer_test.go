package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"taskledger/httpapi/auth"
	"taskledger/migrations/testdb"
)

// pooler is a PgBouncer in transaction mode before a server of tests, on a Unix socket.
type pooler struct {
	t      *testing.T
	binary string
	dir    string
	stderr lockedBuffer
	cmd    *exec.Cmd
}

// findPgBouncer finds the program, which Debian puts where only root looks. PgBouncer is not PostgreSQL: where it is
// missing, the rest of the suite says as much as it can, except where the project is checked for good.
func findPgBouncer(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"pgbouncer", "/usr/sbin/pgbouncer", "/usr/local/sbin/pgbouncer"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	const missing = "PgBouncer is missing, which this test runs the server behind: install the package pgbouncer"
	if os.Getenv("CI") != "" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}

// startPooler starts a PgBouncer before the server of a URL, and gives the URL of the same database behind it.
// PgBouncer keeps few connections to PostgreSQL for many clients.
func startPooler(t *testing.T, server string, settings ...string) (p *pooler, pooled string) {
	t.Helper()
	p = &pooler{t: t, binary: findPgBouncer(t)}
	var err error
	if p.dir, err = os.MkdirTemp("", "pgbouncer-"); err != nil { // a short path: that of a socket may have 107 bytes
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(p.dir) })
	if err := os.Chmod(p.dir, 0o777); err != nil { // for the user that it runs as instead of root
		t.Fatal(err)
	}
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	lines := append([]string{
		"[databases]",
		fmt.Sprintf("* = host=%s port=%s user=%s password=%s", u.Hostname(), u.Port(), u.User.Username(), password),
		"[pgbouncer]",
		"listen_addr =", "listen_port = 6432", "unix_socket_dir = " + p.dir,
		"auth_type = any", "log_connections = 0", "log_disconnections = 0",
		"pool_mode = transaction", "default_pool_size = 8", "max_client_conn = 200",
	}, settings...)
	if os.Geteuid() == 0 {
		lines = append(lines, "user = nobody")
	}
	if err := os.WriteFile(p.config(), []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.start()
	// PgBouncer takes no options: who has some in the URL is still served.
	return p, fmt.Sprintf("postgres://anybody@%s?host=%s&port=6432&application_name=a&options=-csearch_path%%3Da",
		u.Path, url.QueryEscape(p.dir))
}

func (p *pooler) config() string { return filepath.Join(p.dir, "pgbouncer.ini") }

// start returns when it listens.
func (p *pooler) start() {
	p.cmd = exec.Command(p.binary, p.config())
	p.cmd.Stderr = &p.stderr
	if err := p.cmd.Start(); err != nil {
		p.t.Fatalf("start PgBouncer: %v", err)
	}
	p.t.Cleanup(p.kill)
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	for {
		conn, err := net.Dial("unix", filepath.Join(p.dir, ".s.PGSQL.6432"))
		if err == nil {
			_ = conn.Close()
			return
		}
		if !tick(ctx) {
			p.t.Fatalf("PgBouncer does not listen: %v; it said:\n%s", err, &p.stderr)
		}
	}
}

func (p *pooler) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // it was killed
}

// knowsPrepared tells whether this PgBouncer, 1.21 or newer, can keep prepared statements.
func knowsPrepared(t *testing.T) bool {
	t.Helper()
	out, err := exec.Command(findPgBouncer(t), "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(out), "PgBouncer %d.%d", &major, &minor); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	return major > 1 || minor >= 21
}

// Behind a PgBouncer in transaction mode, which nobody has told of: several users write and read through two servers,
// while tables are altered, the read model is made anew and the pooler is killed. Nothing acknowledged is lost, nobody
// sees another's tasks, every read shows what was written before it.
func TestBehindPgBouncer(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name, settings string
		as             func(t *testing.T, url string) string // whose URL PgBouncer has
	}{
		{"a superuser", "", func(_ *testing.T, url string) string { return url }},
		{"an owner", "", asOwner},
		{"prepared statements are kept", "max_prepared_statements = 100", asOwner},
	}
	if knowsPrepared(t) {
		cases[0].settings, cases[1].settings = "max_prepared_statements = 0", "max_prepared_statements = 0"
	} else {
		cases = cases[:2]
	}
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			direct := testdb.EmptyURL(t)
			p, pooled := startPooler(t, tt.as(t, direct), tt.settings)
			b := &bouncing{t: t, pooler: p, direct: direct, pooled: pooled}
			b.servers = [2]*served{startServer(t, b.env()...), startServer(t, b.env()...)}
			b.play()
			for _, s := range b.servers {
				s.terminate()
			}
			got := finish(t, program(t, b.env(), "verify"))
			if got.code != 0 || !strings.HasSuffix(got.stdout, "; 0 parked\n") {
				t.Errorf("verify: %+v", got)
			}
			if t.Failed() {
				t.Logf("PgBouncer said:\n%s", &p.stderr)
			}
		})
	}
}

// More servers start at once than PgBouncer has connections to PostgreSQL: who waits to migrate keeps none of them.
func TestManyStartBehindASmallPgBouncer(t *testing.T) {
	t.Parallel()
	_, pooled := startPooler(t, testdb.EmptyURL(t), "default_pool_size = 3")
	var starts sync.WaitGroup
	for range 5 {
		starts.Go(func() {
			got := finish(t, program(t, []string{"DATABASE_URL=" + pooled}, "migrate"))
			if got.code != 0 {
				t.Errorf("migrate: %+v", got)
			}
		})
	}
	starts.Wait()
}

// asOwner makes an ordinary role that may make schemas in the database, whom row level security binds.
func asOwner(t *testing.T, direct string) string {
	t.Helper()
	u, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	role, database := "owner_of_"+u.Path[1:], pgx.Identifier{u.Path[1:]}.Sanitize()
	execute(t, direct, `CREATE ROLE `+role+` LOGIN PASSWORD 'secret'; GRANT CREATE ON DATABASE `+database+` TO `+role)
	t.Cleanup(func() { execute(t, direct, `DROP OWNED BY `+role+` CASCADE; DROP ROLE `+role) })
	u.User = url.UserPassword(role, "secret")
	return u.String()
}

type bouncing struct {
	t              *testing.T
	pooler         *pooler
	direct, pooled string
	servers        [2]*served
	clients        []*bouncingClient
}

// bouncingClient is a user with one client.
type bouncingClient struct {
	*bouncing
	user, token string
	written     atomic.Int64 // and seen by the other server
	unavailable atomic.Int64 // answers 503
}

func (b *bouncing) env() []string {
	return []string{"DATABASE_URL=" + b.pooled, "BETTER_AUTH_SECRET=" + serveSecret}
}

func (b *bouncing) play() {
	b.makeClients()
	ctx, cancel := context.WithCancel(b.t.Context())
	var work sync.WaitGroup
	for _, c := range b.clients {
		work.Go(func() { c.run(ctx) })
	}
	defer work.Wait()
	defer cancel()
	b.progress()
	execute(b.t, b.direct, `ALTER TABLE taskledger.tasks ADD COLUMN added text DEFAULT 'x'`)
	execute(b.t, b.direct, `ALTER TABLE taskledger.task_events ADD COLUMN added int`)
	b.progress()
	if got := finish(b.t, program(b.t, b.env(), "rebuild")); got.code != 0 {
		b.t.Errorf("rebuild: %+v", got)
	}
	b.progress()
	if n := b.refusals(); n > 0 {
		b.t.Errorf("%d answers 503 while nothing was away", n)
	}
	b.pooler.kill()
	b.pooler.start()
	back := time.Now()
	b.progress()
	took := time.Since(back)
	if took > recovery {
		b.t.Errorf("all write again %v after the pooler is back", took)
	}
	cancel()
	work.Wait()
	var written int64
	for _, c := range b.clients {
		written += c.written.Load()
	}
	b.t.Logf("%d tasks of %d users written and seen; %v after the pooler was back all went on; %d answers 503",
		written, len(b.clients), took.Round(time.Millisecond), b.refusals())
}

// makeClients makes users with tokens, and one whose session is in Better Auth's tables, behind the pooler too.
func (b *bouncing) makeClients() {
	execute(b.t, b.direct, `
		CREATE SCHEMA a;
		CREATE TABLE a."user" ("id" text);
		CREATE TABLE a."session" ("token" text, "userId" text, "expiresAt" timestamptz);
		INSERT INTO a."user" VALUES ('by session');
		INSERT INTO a."session" VALUES ('a-session', 'by session', 'tomorrow');
		GRANT USAGE ON SCHEMA a TO PUBLIC;
		GRANT SELECT ON ALL TABLES IN SCHEMA a TO PUBLIC`)
	mac := hmac.New(sha256.New, []byte(serveSecret))
	mac.Write([]byte("a-session"))
	session := "a-session." + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	b.clients = []*bouncingClient{{bouncing: b, user: "by session", token: session}}
	for n := range 11 {
		user := fmt.Sprint("user ", n)
		token, err := auth.SignToken([]byte(serveSecret), user, "", "", time.Now(), time.Hour)
		if err != nil {
			b.t.Fatal(err)
		}
		b.clients = append(b.clients, &bouncingClient{bouncing: b, user: user, token: token})
	}
}

// progress waits until each client has written and seen some more.
func (b *bouncing) progress() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	wanted := make([]int64, len(b.clients))
	for i, c := range b.clients {
		wanted[i] = c.written.Load() + 5
	}
	for i, c := range b.clients {
		for c.written.Load() < wanted[i] {
			if b.t.Failed() || !tick(ctx) {
				b.t.Errorf("%s: %d tasks are written and seen, %d wanted; the servers said:\n%s\n%s",
					c.user, c.written.Load(), wanted[i], b.servers[0].stderr, b.servers[1].stderr)
				return
			}
		}
	}
}

func (b *bouncing) refusals() (n int64) {
	for _, c := range b.clients {
		n += c.unavailable.Load()
	}
	return n
}

// run writes through one server and looks through the other. What has begun is finished.
func (c *bouncingClient) run(ctx context.Context) {
	for n := 0; ctx.Err() == nil && !c.t.Failed(); n++ {
		title := fmt.Sprintf("%s: %d", c.user, n)
		c.must(n, 201, "POST", fmt.Sprintf(`{"title":%q}`, title), title)
		var seen []struct {
			Title string `json:"title"`
			Owner string `json:"user_id"`
		}
		answer := c.must(n+1, 200, "GET", "", "")
		if err := json.Unmarshal(answer, &seen); err != nil {
			c.t.Errorf("%s: %v", c.user, err)
			return
		}
		if len(seen) != n+1 || seen[0].Title != title {
			c.t.Errorf("%s: after %d tasks %d are listed, the last is %+v",
				c.user, n+1, len(seen), seen[:min(1, len(seen))])
			return
		}
		for _, task := range seen {
			if task.Owner != c.user || !strings.HasPrefix(task.Title, c.user+": ") {
				c.t.Errorf("%s sees %+v", c.user, task)
				return
			}
		}
		c.written.Add(1)
	}
}

// must asks again until it is answered otherwise than with 503, with the same key.
func (c *bouncingClient) must(server, want int, method, body, key string) []byte {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	for {
		status, answer, err := c.ask(ctx, c.servers[server%2], method, body, key)
		if err == nil && status == want {
			return answer
		}
		if err == nil && status != http.StatusServiceUnavailable {
			c.t.Errorf("%s: %s: %d %s", c.user, method, status, answer)
			return nil
		}
		c.unavailable.Add(1)
		if !tick(ctx) {
			c.t.Errorf("%s: %s: %d %s %v", c.user, method, status, answer, err)
			return nil
		}
	}
}

func (c *bouncingClient) ask(
	ctx context.Context, s *served, method, body, key string,
) (status int, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, s.base+"/api/tasks", bytes.NewReader([]byte(body)))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	if key != "" {
		req.Header.Set("Idempotency-Key", strings.ReplaceAll(key, " ", "-"))
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, errors.Join(err, resp.Body.Close())
}

// The operator's commands behind a PgBouncer with so many connections to PostgreSQL: where there are as many as a
// command needs at once, it does its work; else it does nothing, and says in one line what helps.
func TestCommandsBehindPgBouncer(t *testing.T) {
	t.Parallel()
	source := []string{"DATABASE_URL=" + testdb.URL(t), "BETTER_AUTH_SECRET=" + serveSecret}
	s, _ := fillLedger(t, source)
	s.terminate()
	export := inFile(t, output(t, source, "", "export"))
	const alice = "--user=alice"
	commands := []operation{
		{needs: 2, args: []string{"migrate"}, want: "has the schema of this program"},
		{needs: 3, args: []string{"import", export}, want: "imported 10 events of 3 users"},
		{needs: 1, args: []string{"status"}, want: "log                 10 events", code: exitFailed}, // fsync is off
		{needs: 1, args: []string{"verify"}, want: "compared 3 users, 10 events"},
		{needs: 1, args: []string{"history", alice}, want: "Buy"},
		{needs: 1, args: []string{"export"}, want: `"user_id":"carol"`},
		{needs: 5, args: []string{"rebuild"}, want: "10 events folded"},
		{needs: 2, args: []string{"rebuild", alice}, want: "4 events folded"},
		{needs: 1, args: []string{"parked"}, want: `user="alice" event=5`, code: exitFailed},
		{needs: 2, args: []string{"parked", "retry"}, want: `user="alice" event=5`, code: exitFailed},
		{needs: 2, args: []string{"parked", "skip", alice}, want: "nobody is parked"},
		{needs: 2, args: []string{"adopt", "--dry-run"}, want: "to adopt       40"},
		{needs: 3, args: []string{"adopt"}, want: "adopted        40"},
		{needs: 1, args: []string{"erase", "--yes", alice}, want: "erased user"},
		{needs: 1, args: []string{"verify"}, want: "compared 6 users, 47 events, 95 rows; 0 parked"},
	}
	for _, size := range []int{20, 4, 2, 1} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			url := testdb.EmptyURL(t)
			execute(t, url+"&search_path=public", sqlModel+`;
				INSERT INTO task (id, title, is_completed, user_id)
				SELECT gen_random_uuid(), 'old', false, (ARRAY['ann', 'bob', 'eve'])[n % 3 + 1]
				FROM generate_series(1, 40) n`)
			_, pooled := startPooler(t, url, fmt.Sprint("default_pool_size = ", size))
			for _, o := range commands {
				if o.args[0] == "parked" && len(o.args) == 1 {
					execute(t, url, refusedByAlice)
					output(t, []string{"DATABASE_URL=" + url}, "", "rebuild")
				}
				o.check(t, size, url, pooled)
			}
		})
	}
}

// refusedByAlice is an event of alice's that no read model takes.
const refusedByAlice = `
	INSERT INTO taskledger.task_events
		(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
	VALUES ('alice', 5, gen_random_uuid(), 'TaskRenamed', 1, '{}', gen_random_uuid(), gen_random_uuid(), 'alice', 'r',
		clock_timestamp())`

// operation is a command of an operator's.
type operation struct {
	needs int // connections at once
	args  []string
	want  string // in what it prints
	code  int
}

// check runs it behind a pooler of so many connections, and without one where those are too few.
func (o operation) check(t *testing.T, size int, direct, pooled string) {
	t.Helper()
	run := func(url string, args ...string) outcome {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		cmd := program(t, []string{"DATABASE_URL=" + url}, args...)
		defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })() // a command that hangs
		return finish(t, cmd)
	}
	if size < o.needs {
		before := run(direct, "export")
		got := run(pooled, o.args...)
		if got.code != exitFailed || got.stdout != "" || strings.Count(got.stderr, "\n") != 1 ||
			!strings.Contains(got.stderr, "use a URL that goes to PostgreSQL directly") {
			t.Errorf("%v: %+v, want one line that says what helps", o.args, got)
		}
		if after := run(direct, "export"); after != before {
			t.Errorf("%v has done something: the export was %+v and is %+v", o.args, before, after)
		}
		pooled = direct
	}
	if got := run(pooled, o.args...); got.code != o.code || !strings.Contains(got.stdout, o.want) {
		t.Errorf("%v: %+v, want exit code %d and %q", o.args, got, o.code, o.want)
	}
}
