package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// databaseURL is what a URL of a PostgreSQL, or libpq's key=value, says to this program. It is written for other
// clients too: what they say in words of their own is translated, and what concerns them alone is left out.
type databaseURL struct {
	config  *pgxpool.Config // RuntimeParams have nothing but application_name and options
	limited bool            // it says how many connections a pool may have
	pooled  bool            // it says that a connection does not keep prepared statements
	schema  string          // where the tables of its other clients are
	unknown []string        // parameters that are left out because nobody here knows them
}

var (
	errNotPostgres = errors.New("must begin with postgres:// or postgresql://, or be libpq's key=value")
	errBadAddress  = errors.New("must be a URL such as postgres://user:password@host:5432/database, " +
		"with characters such as @ / % in user and password percent-encoded")
	errBadParameters = errors.New("has parameters that cannot be used: names, values or how they are percent-encoded")
)

// severalHostsTimeout is how long one of several hosts may take to answer, unless the URL says so: the next one is
// there for when this one is not.
const severalHostsTimeout = 3 * time.Second

// readDatabaseURL reads a URL without connecting. Its errors go behind the name of the variable, and show no value of
// it.
func readDatabaseURL(text string) (databaseURL, error) {
	address, given, err := takeApart(strings.TrimSpace(text))
	if err != nil {
		return databaseURL{}, err
	}
	kept, unknown, err := translate(given)
	if err != nil {
		return databaseURL{}, err
	}
	d := databaseURL{schema: given.schema(), unknown: unknown, limited: kept.has("pool_max_conns")}
	if d.config, err = pgxpool.ParseConfig(kept.behind(address)); err != nil {
		return databaseURL{}, refusedPart(address, given) // not pgx's error: that shows the URL, and its mask is none
	}
	d.pooled = given.losesStatements() || d.config.ConnConfig.DefaultQueryExecMode != pgx.QueryExecModeCacheStatement
	conn := d.config.ConnConfig
	for name := range conn.RuntimeParams { // those of a service file too
		if name != "application_name" && name != "options" || conn.RuntimeParams[name] == "" {
			delete(conn.RuntimeParams, name)
		}
	}
	hosts := hostsOf(conn)
	if strings.ContainsAny(strings.Join(hosts, ""), "@?=;") || strings.Contains(conn.Database, "://") {
		return databaseURL{}, errBadAddress // what would be shown as a host or database may have a password in it
	}
	if len(hosts) > 1 {
		conn.ConnectTimeout = cmp.Or(conn.ConnectTimeout, severalHostsTimeout)
		if !kept.has("target_session_attrs") {
			conn.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
		}
	}
	return d, nil
}

// tellUnknown names the parameters of a variable that were left out.
func (d databaseURL) tellUnknown(log *slog.Logger, variable string) {
	if len(d.unknown) > 0 {
		log.Warn("the URL has parameters that are not known here: they are left out",
			"variable", variable, "parameters", strings.Join(d.unknown, " "))
	}
}

// parameters are what is behind the ? of a URL, or all of libpq's key=value. Of two with the same name the last one
// counts.
type parameters []parameter

type parameter struct{ name, value string }

func (p parameters) get(name string) string {
	for _, q := range slices.Backward(p) {
		if q.name == name {
			return q.value
		}
	}
	return ""
}

func (p parameters) has(name string) bool {
	return slices.ContainsFunc(p, func(q parameter) bool { return q.name == name })
}

func (p parameters) without(i int) parameters { return slices.Delete(slices.Clone(p), i, i+1) }

// parameterName is what can be shown: anything else may be a piece of a password.
var parameterName = regexp.MustCompile(`^[A-Za-z_][\w.\[\]-]*$`)

// takeApart parts a URL at its ?. The key=value form is all parameters. What is neither is not read.
func takeApart(text string) (address string, given parameters, err error) {
	if !strings.HasPrefix(text, "postgres://") && !strings.HasPrefix(text, "postgresql://") {
		given, err = keyValues(text)
		return "", given, err
	}
	// As in libpq, user and password go to the first @ before a /, whatever they have in them.
	start := strings.Index(text, "://") + len("://")
	at := strings.IndexAny(text[start:], "@/")
	named := at >= 0 && text[start+at] == '@'
	if named {
		start += at + 1
	}
	place, query, _ := strings.Cut(text[start:], "?")
	host, _, _ := strings.Cut(place, "/")
	if strings.Contains(host, "@") || !named && strings.Contains(place, "@") {
		return "", nil, errBadAddress
	}
	if given, err = queryParameters(query); err != nil {
		return "", nil, err
	}
	if host == "" {
		given = namedByAddress(given)
	}
	return text[:start] + place, given, nil
}

func queryParameters(query string) (given parameters, err error) {
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, nameErr := url.PathUnescape(name)
		value, valueErr := url.PathUnescape(value)
		if nameErr != nil || valueErr != nil || !parameterName.MatchString(name) {
			return nil, errBadParameters
		}
		given = append(given, parameter{name, value})
	}
	return given, nil
}

// namedByAddress has libpq's hostaddr for a host where none is named: else another server would be asked, with the
// password.
func namedByAddress(given parameters) parameters {
	if address := given.get("hostaddr"); address != "" && !given.has("host") {
		return append(given, parameter{"host", address})
	}
	return given
}

var (
	// keyValue finds the first pair of libpq's connection strings: key=value or key='a value'.
	keyValue = regexp.MustCompile(`(?s)^\s*([A-Za-z_]\w*)\s*=\s*` +
		`(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*)?)(?:\s+|$)`)

	escaped = regexp.MustCompile(`(?s)\\(.)`)

	// semicolons part the pairs of other connection strings.
	semicolons = regexp.MustCompile(`;[^;]*=`)
)

func unescape(s string) string { return escaped.ReplaceAllString(s, "$1") }

func keyValues(text string) (given parameters, err error) {
	for text != "" {
		pair := keyValue.FindStringSubmatch(text)
		if pair == nil || semicolons.MatchString(pair[3]) {
			return nil, errNotPostgres
		}
		given = append(given, parameter{pair[1], unescape(pair[2] + pair[3])})
		text = text[len(pair[0]):]
	}
	for _, name := range []string{"host", "hostaddr", "port", "dbname", "user", "service"} {
		if given.has(name) {
			return namedByAddress(given), nil
		}
	}
	return nil, errNotPostgres
}

// behind makes a URL of its address and parameters, or key=value of parameters alone.
func (p parameters) behind(address string) string {
	var b strings.Builder
	b.WriteString(address)
	for i, q := range p {
		if address == "" {
			value := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(q.value)
			fmt.Fprintf(&b, "%s='%s' ", q.name, value)
			continue
		}
		b.WriteByte("?&"[min(i, 1)])
		b.WriteString(q.name + "=" + strings.ReplaceAll(url.QueryEscape(q.value), "+", "%20"))
	}
	return b.String()
}

// refusedPart is what of a URL pgx does not take: the parameter without which it would, else the address.
func refusedPart(address string, given parameters) error {
	for i, p := range given {
		kept, _, err := translate(given.without(i))
		if err != nil || p.name == "host" { // without a host it would be a socket, where no TLS is wrong
			continue
		}
		if _, err := pgxpool.ParseConfig(kept.behind(address)); err == nil {
			return badValue(p.name)
		}
	}
	if _, err := pgxpool.ParseConfig(address); err == nil {
		return errBadParameters
	}
	return errBadAddress
}

func badValue(name string) error {
	return fmt.Errorf("has a parameter %s whose value cannot be used", name)
}

// hostsOf are the hosts with their ports, in the order in which they are tried.
func hostsOf(conn *pgx.ConnConfig) []string {
	hosts := []string{fmt.Sprint(conn.Host, " ", conn.Port)}
	for _, f := range conn.Fallbacks {
		hosts = append(hosts, fmt.Sprint(f.Host, " ", f.Port))
	}
	return slices.Compact(hosts)
}

// words are the names in a text.
func words(text string) map[string]bool {
	names := map[string]bool{}
	for name := range strings.FieldsSeq(text) {
		names[name] = true
	}
	return names
}

// ours are the parameters that go to pgx as they are. Those that translate has an eye on stand among theirs.
var ours = words(`
	host port dbname database user password passfile service servicefile connect_timeout target_session_attrs
	application_name options sslkey sslcertmode sslnegotiation sslpassword sslsni channel_binding require_auth
	krbspn krbsrvname min_protocol_version max_protocol_version default_query_exec_mode pool_max_conns
	pool_min_conns pool_min_idle_conns pool_max_conn_lifetime pool_max_conn_lifetime_jitter pool_max_conn_idle_time
	pool_health_check_period`)

// theirs are the parameters that make no difference to us, as far as translate makes nothing of them: how another
// client works inside, and what this one has its own settings of, or an own bound for. Not among them is what would
// make a connection safer: who asks for that, in words that we do not know, must hear of it.
var theirs = words(`
	schema currentSchema search_path schema_search_path pgbouncer supa pool_timeout pool_ping_timeout
	connection_limit statement_cache_capacity description_cache_capacity hostaddr statement_timeout lock_timeout
	idle_in_transaction_session_timeout idle_session_timeout transaction_timeout sslmode ssl sslcert sslrootcert
	sslaccept targetServerType client_encoding datestyle DateStyle intervalstyle IntervalStyle timezone TimeZone
	extra_float_digits standard_conforming_strings
	` + // libpq
	`fallback_application_name gssencmode gsslib gssdelegation keepalives keepalives_idle keepalives_interval
	keepalives_count load_balance_hosts replication sslcompression tcp_user_timeout
	` + // Prisma
	`socket_timeout max_connection_lifetime max_idle_connection_lifetime single_use_connections statement_cache_size
	` + // node-postgres, and postgres.js
	`uselibpqcompat encoding max min query_timeout connectionTimeoutMillis idleTimeoutMillis maxUses
	maxLifetimeSeconds allowExitOnIdle keepAlive keepAliveInitialDelayMillis enableChannelBinding binary
	parseInputDatesAsUTC idle_timeout max_lifetime max_pipeline prepare fetch_types keep_alive backoff debug
	` + // asyncpg, SQLAlchemy, Django and Rails
	`timeout command_timeout max_cached_statement_lifetime max_cacheable_statement_size prepared_statement_cache_size
	async_fallback conn_max_age conn_health_checks pool pool_size max_overflow pool_recycle pool_pre_ping
	prepared_statements statement_limit checkout_timeout reaping_frequency
	` + // JDBC
	`ApplicationName adaptiveFetch adaptiveFetchMaximum adaptiveFetchMinimum allowEncodingChanges
	assumeMinServerVersion autosave binaryTransfer binaryTransferDisable binaryTransferEnable cancelSignalTimeout
	cleanupSavepoints connectTimeout databaseMetadataCacheFields databaseMetadataCacheFieldsMiB defaultRowFetchSize
	disableColumnSanitiser escapeSyntaxCallMode gssEncMode gssResponseTimeout groupStartupParameters
	hideUnprivilegedObjects hostRecheckSeconds loadBalanceHosts localSocketAddress logServerErrorDetail
	logUnclosedConnections loggerFile loggerLevel loginTimeout maxResultBuffer preferQueryMode prepareThreshold
	preparedStatementCacheQueries preparedStatementCacheSizeMiB protocolVersion queryTimeout
	quoteReturningIdentifiers reWriteBatchedInserts readOnlyMode receiveBufferSize sendBufferSize socketTimeout
	sslResponseTimeout stringtype tcpKeepAlive tcpNoDelay unknownLength xmlFactoryFactory
	` + // Npgsql
	`Pooling Multiplexing Enlist Timeout CommandTimeout CancellationTimeout InternalCommandTimeout KeepAlive
	TcpKeepAlive MinPoolSize MaxPoolSize ConnectionIdleLifetime ConnectionPruningInterval ConnectionLifetime
	MaxAutoPrepare AutoPrepareMinUsages IncludeErrorDetail LogParameters NoResetOnClose ReadBufferSize
	WriteBufferSize SocketReceiveBufferSize SocketSendBufferSize LoadTableComposites ServerCompatibilityMode
	ArrayNullabilityMode HostRecheckSeconds LoadBalanceHosts`)

// lossy are the ways to say that a connection does not keep prepared statements.
var lossy = parameters{
	{"pgbouncer", "true"}, {"prepare", "false"}, {"prepared_statements", "false"}, {"prepareThreshold", "0"},
	{"statement_cache_size", "0"}, {"statement_cache_capacity", "0"}, {"prepared_statement_cache_size", "0"},
}

func (p parameters) losesStatements() bool {
	return slices.ContainsFunc(lossy, func(said parameter) bool { return p.get(said.name) == said.value })
}

// translate gives what pgx is to be told, and the names that mean nothing.
func translate(given parameters) (kept parameters, unknown []string, err error) {
	if kept, err = given.connections(); err != nil {
		return nil, nil, err
	}
	for _, p := range given {
		switch {
		case ours[p.name]:
			kept = append(kept, p)
		case !theirs[p.name] && !slices.Contains(unknown, p.name):
			unknown = append(unknown, p.name)
		}
	}
	server := given.get("targetServerType")
	if !given.has("target_session_attrs") && (server == "primary" || server == "master") {
		kept = append(kept, parameter{"target_session_attrs", "primary"})
	}
	return append(kept, given.security()...), unknown, nil
}

// connections is how many connections Prisma may have; 0 is any number.
func (p parameters) connections() (parameters, error) {
	said := p.get("connection_limit")
	if said == "" || said == "0" {
		return nil, nil
	}
	if _, err := strconv.ParseUint(said, 10, 31); err != nil {
		return nil, badValue("connection_limit")
	}
	return parameters{{"pool_max_conns", said}}, nil
}

// security is what other clients say of TLS, in libpq's words.
func (p parameters) security() (said parameters) {
	mode := strings.ToLower(cmp.Or(p.get("sslmode"), p.get("ssl")))
	root, cert := p.get("sslrootcert"), p.get("sslcert")
	if p.get("sslkey") == "" { // to Prisma that is the certificate of the authority
		root, cert = cmp.Or(root, cert), ""
	}
	switch {
	case p.get("sslmode") == "" && slices.Contains([]string{"true", "1", "on", "yes"}, mode):
		mode = "require"
	case p.get("sslmode") == "" && slices.Contains([]string{"false", "0", "off", "no"}, mode):
		mode = ""
	case mode == "no-verify":
		// With a root certificate, and be it the one in the home directory, libpq's require verifies.
		return parameters{{"sslmode", "require"}, {"sslcert", cert}, {"sslrootcert", ""}}
	case mode == "require" && p.get("sslaccept") == "strict":
		mode = "verify-full"
	}
	for _, q := range (parameters{{"sslmode", mode}, {"sslcert", cert}, {"sslrootcert", root}}) {
		if q.value != "" {
			said = append(said, q)
		}
	}
	return said
}

// schema is the one that the tables of other clients are in: their schema, else the first name of their search_path,
// else public.
func (p parameters) schema() string {
	path := cmp.Or(p.get("currentSchema"), p.get("search_path"), p.get("schema_search_path"))
	if path == "" {
		for _, option := range optionPath.FindAllStringSubmatch(p.get("options"), -1) {
			path = unescape(option[1]) // The last one counts.
		}
	}
	return cmp.Or(strings.Trim(p.get("schema"), `"`), firstSchema(path), "public")
}

var (
	// optionPath finds a search_path among a server's command-line options, where a backslash escapes a blank.
	optionPath = regexp.MustCompile(`(?:^|\s)(?:-c\s*|--)search[_-]path=((?:[^\s\\]|\\.)*)`)

	// schemaName finds a name in a search_path: "quoted" or plain.
	schemaName = regexp.MustCompile(`"((?:[^"]|"")*)"|([^\s,"]+)`)
)

// firstSchema is the first name of a search_path that is a schema's whoever asks. Without quotes it is in lower case.
func firstSchema(path string) string {
	for _, name := range schemaName.FindAllStringSubmatch(path, -1) {
		schema := strings.ReplaceAll(name[1], `""`, `"`) + strings.ToLower(name[2])
		if schema != "" && schema != "$user" {
			return schema
		}
	}
	return ""
}
