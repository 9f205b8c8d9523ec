package projections

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"taskledger/events"
)

// ErrNotParked: the user's stream is followed to its end by every read model.
var ErrNotParked = errors.New("no read model has parked this user")

// Parked is a user whom a read model no longer follows.
type Parked struct {
	Projection string
	UserID     string
	Seq        int64 // of the event that could not be applied
	Reason     string
	Since      time.Time
}

// ListParked lists who is parked; an empty user means all.
func ListParked(ctx context.Context, pool *pgxpool.Pool, user string) ([]Parked, error) {
	var out []Parked
	for _, p := range all() {
		rows, err := pool.Query(ctx, `
			SELECT $1, user_id, seq + 1, parked_error, parked_at
			FROM `+p.name+`_users
			WHERE parked_error IS NOT NULL AND ($2 = '' OR user_id = $2)
			ORDER BY user_id`, p.name, user)
		if err != nil {
			return nil, fmt.Errorf("list parked streams: %w", err)
		}
		parked, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Parked])
		if err != nil {
			return nil, fmt.Errorf("list parked streams: %w", err)
		}
		out = append(out, parked...)
	}
	return out, nil
}

// RetryParked makes the read models of parked users anew from the log, and returns who is parked still. An empty user means all.
func RetryParked(ctx context.Context, pool *pgxpool.Pool, user string) ([]Parked, error) {
	parked, err := ListParked(ctx, pool, user)
	if err != nil {
		return nil, err
	}
	for _, p := range parked {
		if _, err := RebuildUser(ctx, pool, p.Projection, p.UserID); err != nil {
			return nil, err
		}
	}
	return ListParked(ctx, pool, user)
}

// SkipParked tells everyone to pass over the event at which the user is parked, for good, and tries the rest again. It returns who
// is parked still, or ErrNotParked.
func SkipParked(ctx context.Context, pool *pgxpool.Pool, user string) ([]Parked, error) {
	parked, err := ListParked(ctx, pool, user)
	if err != nil {
		return nil, err
	}
	if len(parked) == 0 {
		return nil, ErrNotParked
	}
	for _, p := range parked {
		_, err := pool.Exec(ctx, `INSERT INTO skipped_events (user_id, seq) VALUES ($1, $2) ON CONFLICT DO NOTHING`, p.UserID, p.Seq)
		if err != nil {
			return nil, fmt.Errorf("skip an event: %w", err)
		}
	}
	if _, err := pool.Exec(ctx, `SELECT pg_notify($1, $2)`, events.Topic, skipPrefix+user); err != nil {
		return nil, fmt.Errorf("tell of a skip: %w", err)
	}
	// Read models that had applied the event must forget it too.
	if _, err := RebuildUser(ctx, pool, "", user); err != nil {
		return nil, err
	}
	return ListParked(ctx, pool, user)
}
