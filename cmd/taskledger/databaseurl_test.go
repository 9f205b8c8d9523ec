package main

import (
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"taskledger/migrations/testdb"
)

// What is not a PostgreSQL's, or can't be used, is refused in one line that shows none of it: neither by a command nor
// by another.
func TestBadDatabaseURLs(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"postgresql+asyncpg://u:s3cret@h/d?ssl=require":         "postgres://",
		"mysql://u:s3cret@h/d?x=y":                              "postgres://",
		"prisma+postgres://h/?api_key=s3cret":                   "postgres://",
		"jdbc:postgresql://h/d?user=u&password=s3cret":          "postgres://",
		"file:./s3cret.db?connection_limit=1":                   "postgres://",
		"s3cret:":                                               "postgres://",
		"psql 'postgres://u:s3cret@h/d'":                        "postgres://",
		`"postgres://u:s3cret@h/d"`:                             "postgres://",
		"DATABASE_URL=postgres://u:s3cret@h/d":                  "postgres://",
		"Host=h;Username=u;Password=s3cret;Database=d":          "postgres://",
		"Server=h;Port=5432;User Id=u;Password=s3cret":          "postgres://",
		"host=h;username=u;password=s3cret":                     "postgres://",
		"user=u;password=s3cret;database=d port=1":              "postgres://",
		"password=s3cret":                                       "postgres://",
		"host=h password='s3cret":                               "postgres://",
		"host=postgres://u:s3cret@h/d":                          "percent-encoded",
		"host=h dbname=postgres://u:s3cret@h/d":                 "percent-encoded",
		"postgres://u:s3/cret@h/d":                              "percent-encoded",
		"postgres://u:12/s3cret@h/d":                            "percent-encoded",
		"postgres://u:s3@s3cret@h/d":                            "percent-encoded",
		"postgres://u:s3cret%@h/d":                              "percent-encoded",
		"postgres://s3cret@:x/":                                 "percent-encoded",
		"postgres://":                                           "",
		"postgres://h/d?s3cret@h=x":                             "parameters",
		"postgres://h/d?a=s3cret%":                              "parameters",
		"postgres://h/d?sslmode=s3cret":                         "sslmode",
		"postgres://h/d?ssl=s3cret":                             "ssl ",
		"postgres://h/d?sslcert=s3cret":                         "sslcert",
		"postgres://h/d?sslrootcert=s3cret":                     "sslrootcert",
		"postgres://h/d?target_session_attrs=s3cret":            "target_session_attrs",
		"postgres://h/d?connect_timeout=s3cret":                 "connect_timeout",
		"postgres://h/d?connection_limit=s3cret":                "connection_limit",
		"postgres://h/d?connection_limit=-1":                    "connection_limit",
		"postgres://h/d?pool_max_conns=s3cret":                  "pool_max_conns",
		"postgres://h/d?channel_binding=s3cret":                 "channel_binding",
		"postgres://h/d?default_query_exec_mode=s3cret":         "default_query_exec_mode",
		"host=h sslmode=s3cret":                                 "sslmode",
		"postgres://h/d?sslmode=s3cret&channel_binding=s3cret":  "parameters",
		"postgres://h1:1,h2:2,h3/d?port=1,2":                    "port",
		"postgres://h/d?application_name=a%00s3cret&schema=app": "application_name",
	} {
		_, err := readDatabaseURL(value)
		if value == "postgres://" {
			if err != nil { // libpq's defaults
				t.Errorf("%s: %v", value, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.ContainsAny(err.Error(), "\n") ||
			strings.Contains(err.Error(), "s3") {
			t.Errorf("%s: %v, want one line with %q in it and nothing secret", value, err, want)
		}
	}
}

func TestURLsOfOtherProgramsStopEveryCommand(t *testing.T) {
	t.Parallel()
	const foreign = "postgresql+asyncpg://u:s3cret@h/d?ssl=require"
	elsewhere := []string{"PGHOST=127.0.0.1", "PGPORT=1", "PGUSER=u", "BETTER_AUTH_SECRET=" + serveSecret}
	for _, args := range [][]string{
		{"serve"}, {"migrate"}, {"verify"}, {"rebuild"}, {"parked"}, {"token", "--user=u"}, {"version"},
	} {
		for _, variable := range []string{"DATABASE_URL", "BETTER_AUTH_DATABASE_URL"} {
			got := finish(t, program(t, append([]string{variable + "=" + foreign}, elsewhere...), args...))
			said := got.stdout + got.stderr
			want := "taskledger: " + variable + " must begin with postgres://"
			if got.code != exitUsage || strings.Count(said, "\n") != 1 || !strings.HasPrefix(said, want) {
				t.Errorf("%s, %v: exit code %d, said %q", variable, args, got.code, said)
			}
		}
	}
}

// parametersOfOthers are what other clients put into a URL, and what we make of it.
func parametersOfOthers() map[string]string {
	return map[string]string{
		"":                                    "",
		"schema=public":                       "",
		"sslmode=":                            "",
		"&schema=public&":                     "",
		"uselibpqcompat=true&sslmode=require": "tls",
		"pgbouncer=true&connection_limit=1&pool_timeout=0": "pooled max=6",
		"connection_limit=40":                              "max=40",
		"connection_limit=40&pool_max_conns=30":            "max=30",
		"connection_limit=0":                               "",
		"pool_max_conns=30":                                "max=30",
		"statement_cache_size=0":                           "pooled",
		"statement_cache_capacity=0":                       "pooled",
		"statement_cache_capacity=100":                     "",
		"prepare=false":                                    "pooled",
		"default_query_exec_mode=exec":                     "pooled",
		"default_query_exec_mode=cache_statement":          "",
		"sslaccept=strict":                                 "",
		"sslaccept=accept_invalid_certs&sslmode=require":   "tls",
		"sslaccept=strict&sslmode=require":                 "tls verified",
		"sslmode=no-verify":                                "tls",
		"sslmode=Require":                                  "tls",
		"ssl=true":                                         "tls",
		"ssl=1":                                            "tls",
		"ssl=require":                                      "tls",
		"ssl=verify-full":                                  "tls verified",
		"ssl=no-verify":                                    "tls",
		"ssl=false":                                        "",
		"sslmode=verify-full&ssl=true":                     "tls verified",
		"gssencmode=disable":                               "",
		"keepalives=1&keepalives_idle=30&keepalives_interval=10":          "",
		"keepalives_count=3&tcp_user_timeout=1000&sslcompression=0":       "",
		"fallback_application_name=x":                                     "",
		"application_name=x":                                              "name=x",
		"load_balance_hosts=random":                                       "",
		"channel_binding=require":                                         "",
		"replication=database":                                            "",
		"statement_timeout=1000&TimeZone=Europe/Berlin":                   "",
		"default_transaction_read_only=on&role=x&role=y":                  "unknown=default_transaction_read_only,role",
		"sslcrl=x&ssl_min_protocol_version=TLSv1.3":                       "unknown=sslcrl,ssl_min_protocol_version",
		"x-migrations-table=a&options[x]=y":                               "unknown=x-migrations-table,options[x]",
		"options=endpoint%3Dep-1":                                         "options=endpoint=ep-1",
		"options=-c%20a%3Db%20-c%20c=d%2Be":                               "options=-c a=b -c c=d+e",
		"options=":                                                        "",
		"supa=base-pooler.x&sslmode=require":                              "tls",
		"ApplicationName=x&prepareThreshold=0&reWriteBatchedInserts=true": "pooled",
	}
}

// What other clients put into the URL that they share with us is understood, or left out.
func TestParametersOfOtherClients(t *testing.T) {
	t.Parallel()
	for text, want := range parametersOfOthers() {
		urls := []string{"postgres://u:p@127.0.0.1/d?" + text}
		if keyValued := strings.ReplaceAll(strings.Trim(text, "&"), "&", " "); !strings.ContainsAny(keyValued, "%[-") {
			urls = append(urls, "host=127.0.0.1 user=u password='p:/\\'' dbname=d "+keyValued)
		}
		for _, url := range urls {
			d, err := readDatabaseURL(url)
			if err != nil {
				t.Errorf("%s: %v", url, err)
				continue
			}
			if got := describe(d); got != want {
				t.Errorf("%s: %q, want %q", url, got, want)
			}
		}
	}
}

// What a service file says goes the same way.
func TestServiceFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "services")
	const service = "[s]\nhost=elsewhere\ngssencmode=disable\nkeepalives_idle=30\napplication_name=x\n"
	if err := os.WriteFile(file, []byte(service), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := readDatabaseURL("service=s servicefile=" + file)
	if err != nil {
		t.Fatal(err)
	}
	if got := describe(d); got != "name=x" || d.config.ConnConfig.Host != "elsewhere" {
		t.Errorf("%s, host %s", got, d.config.ConnConfig.Host)
	}
}

// describe tells what of a URL is other than usual.
func describe(d databaseURL) string {
	var said []string
	add := func(is bool, word string) {
		if is {
			said = append(said, word)
		}
	}
	conn := d.config.ConnConfig
	add(conn.TLSConfig != nil && len(conn.Fallbacks) == 0, "tls")
	add(conn.TLSConfig != nil && !conn.TLSConfig.InsecureSkipVerify, "verified")
	add(d.pooled, "pooled")
	add(d.limited, "max="+fmt.Sprint(d.poolConfig().MaxConns))
	add(len(d.unknown) > 0, "unknown="+strings.Join(d.unknown, ","))
	for _, name := range slices.Sorted(maps.Keys(conn.RuntimeParams)) {
		add(true, strings.TrimPrefix(name, "application_")+"="+conn.RuntimeParams[name])
	}
	return strings.Join(said, " ")
}

func TestSchemaOfTheSessionTables(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"postgres://h/d":                                              "public",
		"postgres://h/d?sslmode=require":                              "public",
		"postgres://h/d?schema=app":                                   "app",
		"postgres://h/d?schema=MyApp":                                 "MyApp",
		"postgres://h/d?schema=%22MyApp%22":                           "MyApp",
		"postgres://h/d?currentSchema=app,other":                      "app",
		"postgres://h/d?schema=":                                      "public",
		"postgresql://h/d?schema=app&search_path=other":               "app",
		"postgres://h1:1,h2:2/d?search_path=app":                      "app",
		"postgres://h/d?search_path=MyApp":                            "myapp",
		"postgres://h/d?search_path=%22MyApp%22,public":               "MyApp",
		"postgres://h/d?search_path=%22a,%20%22%22b%22%22%22":         `a, "b"`,
		"postgres://h/d?search_path=%20app%20,%20public":              "app",
		"postgres://h/d?search_path=%22$user%22,public":               "public",
		"postgres://h/d?search_path=$user,app":                        "app",
		"postgres://h/d?search_path=%22%22":                           "public",
		"postgres://h/d?options=-csearch_path%3Dapp":                  "app",
		"postgres://h/d?options=-c%20search_path%3D%22MyApp%22":       "MyApp",
		"postgres://h/d?options=--search_path%3Dapp":                  "app",
		"postgres://h/d?options=--search-path%3Dapp":                  "app",
		"postgres://h/d?options=-c%20search_path%3Da,%5C%20b":         "a",
		"postgres://h/d?options=-c%20search_path%3D%22a%5C%20b%22":    "a b",
		"postgres://h/d?options=-c%20search_path=a%20-csearch_path=b": "b",
		"postgres://h/d?options=-c%20work_mem%3D8MB":                  "public",
		"postgres://h/d?options=-csearch_path%3Da&search_path=b":      "b",
		"postgres://h/search_path=app":                                "public",
		"postgres://search_path=app@h/d":                              "public",
		"host=h dbname=d":                                             "public",
		"host=h schema=MyApp":                                         "MyApp",
		"host=h search_path=app":                                      "app",
		`host=h search_path='"MyApp", public'`:                        "MyApp",
		`host=h password='it\'s schema=x' search_path = app`:          "app",
		`host=h options='-c search_path=app' dbname=d`:                "app",
	} {
		d, err := readDatabaseURL(url)
		if err != nil || d.schema != want {
			t.Errorf("%s: %q %v, want %q", url, d.schema, err, want)
		}
	}
}

// No parameter that another client needs reaches PostgreSQL as a setting that it does not know, from either of our
// pools.
func TestConnectionsWithParametersOfOtherClients(t *testing.T) {
	t.Parallel()
	plain := testdb.URL(t)
	for _, text := range []string{
		"schema=public", "pgbouncer=true&connection_limit=1&pool_timeout=0", "uselibpqcompat=true",
		"sslaccept=strict", "gssencmode=disable", "keepalives_idle=30", "fallback_application_name=x",
		"load_balance_hosts=random", "application_name=x", "target_session_attrs=read-write",
		"channel_binding=prefer", "channel_binding=disable", "replication=database", "search_path=%22MyApp%22",
		"search_path=%22MyApp%22,public", "options=-csearch_path%3D%22MyApp%22",
		"options=-c%20statement_timeout=60000", "currentSchema=%22MyApp%22", "schema=My%20App",
		"nobody_knows_this=1", "host=127.0.0.1", "statement_cache_capacity=0", "description_cache_capacity=0",
		"statement_timeout=1000",
	} {
		db, err := connect(t.Context(), plain+"&"+text, testdb.Schema)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		pooled := strings.Contains(text, "pgbouncer") || strings.HasPrefix(text, "statement_cache")
		if db.traits.pooled != pooled {
			t.Errorf("%s: pooled %v, want %v", text, db.traits.pooled, pooled)
		}
		sessions, err := openSessions(t.Context(), db.url)
		if err != nil {
			t.Fatal(err)
		}
		var n int
		if err := sessions.QueryRow(t.Context(), `SELECT $1::int + 1`, 1).Scan(&n); err != nil || n != 2 {
			t.Errorf("%s: sessions: %d %v", text, n, err)
		}
		sessions.Close()
		if _, err := db.ledger.Exec(t.Context(), `SELECT FROM {schema}.tasks WHERE user_id = $1`, "u"); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		db.ledger.Pool().Close()
	}
}

// A database, a role and a search_path whose names need quotes.
func TestNamesThatNeedQuotes(t *testing.T) {
	t.Parallel()
	admin := testdb.EmptyURL(t)
	conn, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	const name = `My "App's" Dätabase; 50%`
	for _, statement := range []string{
		`CREATE ROLE ` + pgx.Identifier{name}.Sanitize() + ` LOGIN CREATEROLE PASSWORD 'p:/@?%#'`,
		`CREATE DATABASE ` + pgx.Identifier{name}.Sanitize() + ` OWNER ` + pgx.Identifier{name}.Sanitize(),
	} {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		for _, statement := range []string{`DROP DATABASE IF EXISTS `, `DROP ROLE IF EXISTS `} {
			if _, err := conn.Exec(t.Context(), statement+pgx.Identifier{name}.Sanitize()); err != nil {
				t.Error(err)
			}
		}
	}()
	u, err := url.Parse(admin)
	if err != nil {
		t.Fatal(err)
	}
	u.User, u.Path = url.UserPassword(name, "p:/@?%#"), "/"+name
	for _, value := range []string{
		u.String() + `&search_path=%22MyApp%22`,
		u.String() + `&options=-c%20search_path%3D%22MyApp%22`,
		u.String() + `&schema=My%20App`,
		fmt.Sprintf(`host=%s port=%s user='%s' password='p:/@?%%#' dbname='%s' search_path='"MyApp"'`,
			u.Hostname(), u.Port(), strings.ReplaceAll(name, "'", `\'`), strings.ReplaceAll(name, "'", `\'`)),
	} {
		env := []string{"DATABASE_URL=" + value}
		for _, command := range []string{"migrate", "verify"} {
			if got := finish(t, program(t, env, command)); got.code != 0 || got.stderr != "" {
				t.Errorf("%s: %s: %+v", value, command, got)
			}
		}
	}
}

// Of several hosts the one that takes writes is used, also when another one answers, or says nothing.
func TestSeveralHosts(t *testing.T) {
	t.Parallel()
	plain, err := url.Parse(testdb.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	name := plain.User.Username()
	password, _ := plain.User.Password()
	account, path := "postgres://"+name+":"+password+"@", plain.Host+plain.Path
	for _, text := range []string{
		account + "127.0.0.1:1," + path + "?sslmode=disable",
		account + "127.0.0.1:1," + path + "?sslmode=disable&target_session_attrs=read-write",
		account + silent.Addr().String() + "," + path + "?sslmode=disable&connect_timeout=1",
		fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=1,%s user=%s password=%s dbname=%s target_session_attrs=primary",
			plain.Port(), name, password, plain.Path[1:]),
	} {
		d, err := readDatabaseURL(text)
		if err != nil {
			t.Fatal(err)
		}
		if d.config.ConnConfig.ConnectTimeout == 0 || d.config.ConnConfig.ValidateConnect == nil {
			t.Errorf("%s: waits %v for a host, asks whether it takes writes: %v",
				text, d.config.ConnConfig.ConnectTimeout, d.config.ConnConfig.ValidateConnect != nil)
		}
		db, err := connect(t.Context(), text, testdb.Schema)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		sessions, err := openSessions(t.Context(), db.url)
		if err != nil {
			t.Fatal(err)
		}
		if err := sessions.Ping(t.Context()); err != nil {
			t.Errorf("%s: sessions: %v", text, err)
		}
		sessions.Close()
		db.ledger.Pool().Close()
	}
	// None takes writes: said so, without the user.
	readOnly := account + "127.0.0.1:1," + path + "?options=-cdefault_transaction_read_only=on"
	got := finish(t, program(t, []string{"DATABASE_URL=" + readOnly}, "verify"))
	if got.code != exitFailed || !strings.Contains(got.stderr, "read only connection") ||
		strings.Contains(got.stderr, "user=") {
		t.Errorf("%+v", got)
	}
}

// Why there is no connection is told, and nothing of the URL.
func TestFailedConnectionsShowNothingOfTheURL(t *testing.T) {
	t.Parallel()
	plain, err := url.Parse(testdb.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	for user, want := range map[*url.Userinfo]string{
		url.UserPassword("s3cret", "s3cret"):              "the password is wrong (SQLSTATE 28P01)",
		url.UserPassword(plain.User.Username(), "s3cret"): "the password is wrong (SQLSTATE 28P01)",
	} {
		u := *plain
		u.User = user
		for _, command := range []string{"migrate", "verify", "rebuild", "parked"} {
			got := finish(t, program(t, []string{"DATABASE_URL=" + u.String()}, command))
			if got.code != exitFailed || strings.Count(got.stderr, "\n") != 1 || !strings.Contains(got.stderr, want) ||
				strings.Contains(got.stderr, "s3cret") || strings.Contains(got.stderr, plain.Host) ||
				strings.Contains(got.stderr, plain.Path[1:]) {
				t.Errorf("%s: %+v", command, got)
			}
		}
	}
}

func TestUnknownParametersAreNamedOnce(t *testing.T) {
	t.Parallel()
	var logged lockedBuffer
	log := slog.New(slog.NewTextHandler(&logged, nil))
	d, err := readDatabaseURL("postgres://u:p@h/d?one=s3cret&schema=s3cret&two=s3cret&one=s3cret")
	if err != nil {
		t.Fatal(err)
	}
	d.tellUnknown(log, "DATABASE_URL")
	said := logged.String()
	if strings.Count(said, "\n") != 1 || strings.Contains(said, "s3cret") ||
		!strings.Contains(said, `variable=DATABASE_URL parameters="one two"`) {
		t.Errorf("said %q", said)
	}
}

func TestArgumentsThatAreURLsAreNotShown(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"serve", "postgres://u:s3cret@h/d"}, {"postgres://u:s3cret@h/d"}, {"serve", "host=h password=s3cret"},
		{"--port=postgres://u:s3cret@h/d"}, {"--port", "postgres://u:s3cret@h/d"},
		{"--databse-url=postgres://u:s3cret@h/d"},
		{"--database-url=mysql://u:s3cret@h/d"}, {"--database-url", "host=h sslmode=s3cret"},
	} {
		got := finish(t, program(t, nil, args...))
		said := got.stdout + got.stderr
		if got.code != exitUsage || strings.Count(said, "\n") != 1 || strings.Contains(said, "s3cret") {
			t.Errorf("%v: %+v", args, got)
		}
	}
}
