package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// sessionURL is where Better Auth's tables are: a database of its own, or the ledger's.
func (s *settings) sessionURL(db *database, log *slog.Logger) (databaseURL, error) {
	if s.BetterAuthDatabaseURL == "" {
		return db.url, nil
	}
	url, err := readDatabaseURL(s.BetterAuthDatabaseURL)
	if err != nil {
		return url, fmt.Errorf("BETTER_AUTH_DATABASE_URL %w", err)
	}
	url.tellUnknown(log, "BETTER_AUTH_DATABASE_URL")
	return url, nil
}

// openSessions does not connect yet: Better Auth's database may be away while all else works.
func openSessions(ctx context.Context, url databaseURL) (*pgxpool.Pool, error) {
	config := url.poolConfig()
	nameConnections(config, "sessions")
	// It may be a pooler's, which keeps no prepared statements and refuses settings; the lookup depends on none.
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	if strings.HasPrefix(config.ConnConfig.RuntimeParams["options"], "-") {
		delete(config.ConnConfig.RuntimeParams, "options")
	}
	config.MaxConns = sessionConnections
	if url.limited {
		config.MaxConns = min(sessionConnections, url.config.MaxConns)
	}
	return pgxpool.NewWithConfig(ctx, config)
}
