package main

import (
	"cmp"
	"context"
	"net/url"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// openSessions does not connect yet: Better Auth's database may be away while all else works.
func openSessions(ctx context.Context, url string) (*pgxpool.Pool, error) {
	config, err := poolConfig(url)
	if err != nil {
		return nil, err
	}
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe // it may be a pooler's
	config.MaxConns = sessionConnections
	return pgxpool.NewWithConfig(ctx, config)
}

// sessionSchema is where Better Auth's tables are, as the URL of their database tells its other clients: its schema,
// else the first name of its search_path, else public.
func sessionSchema(databaseURL string) string {
	parameters := urlParameters(databaseURL)
	path := parameters["search_path"]
	if path == "" {
		for _, option := range optionPath.FindAllStringSubmatch(parameters["options"], -1) {
			path = unescape(option[1]) // The last one counts.
		}
	}
	return cmp.Or(strings.Trim(parameters["schema"], `"`), firstSchema(path), "public")
}

var (
	// keyValue finds a pair of libpq's connection strings: key=value or key='a value'.
	keyValue = regexp.MustCompile(`(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s\\]|\\.)*))`)

	// optionPath finds a search_path among a server's command-line options, where a backslash escapes a blank.
	optionPath = regexp.MustCompile(`(?:^|\s)(?:-c\s*|--)search[_-]path=((?:[^\s\\]|\\.)*)`)

	// schemaName finds a name in a search_path: "quoted" or plain.
	schemaName = regexp.MustCompile(`"((?:[^"]|"")*)"|([^\s,"]+)`)

	escaped = regexp.MustCompile(`\\(.)`)
)

func unescape(s string) string { return escaped.ReplaceAllString(s, "$1") }

// urlParameters are those behind the ? of a URL, or all of libpq's key=value form.
func urlParameters(databaseURL string) map[string]string {
	parameters := map[string]string{}
	if strings.HasPrefix(databaseURL, "postgres://") || strings.HasPrefix(databaseURL, "postgresql://") {
		_, query, _ := strings.Cut(databaseURL, "?")
		values, _ := url.ParseQuery(query) // Whoever opens the database tells of an error.
		for name := range values {
			parameters[name] = values.Get(name)
		}
		return parameters
	}
	for _, pair := range keyValue.FindAllStringSubmatch(databaseURL, -1) {
		parameters[pair[1]] = unescape(pair[2] + pair[3])
	}
	return parameters
}

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
