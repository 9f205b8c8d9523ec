package projections

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

// ErrNotParked: the user's stream is followed to its end.
var ErrNotParked = errors.New("this user is not parked")

// Parked is a user whom the read model no longer follows.
type Parked struct {
	UserID string    `json:"user_id"`
	Seq    int64     `json:"seq"` // of the event that could not be applied
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
}

// ListParked lists who is parked; an empty user means all.
func ListParked(ctx context.Context, db *events.DB, user string) ([]Parked, error) {
	var out []Parked
	err := db.Query(ctx, `
		SELECT user_id, seq + 1, parked_error, parked_at
		FROM {schema}.users
		WHERE parked_error IS NOT NULL AND ($1 = '' OR user_id = $1)
		ORDER BY user_id`, []any{user}, func(rows pgx.Rows) (err error) {
		out, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Parked])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list parked users: %w", err)
	}
	return out, nil
}

// RetryParked makes the rows of parked users anew from the log, and returns who is parked still. An empty user means
// all.
func RetryParked(ctx context.Context, db *events.DB, user string) (still []Parked, err error) {
	err = maintain(ctx, db, 1, func() error {
		parked, err := ListParked(ctx, db, user)
		if err != nil {
			return err
		}
		for _, p := range parked {
			if _, err := rebuildUser(ctx, db, p.UserID); err != nil {
				return err
			}
		}
		still, err = ListParked(ctx, db, user)
		return err
	})
	return still, err
}

// SkipParked has everyone pass over the event at which the user is parked, for good, and tries the rest again. It
// returns who is parked still, or ErrNotParked.
func SkipParked(ctx context.Context, db *events.DB, user string) (still []Parked, err error) {
	return skipParked(ctx, db, user, func(Parked) bool { return true })
}

// SkipParkedAt is SkipParked for who has seen at which event the user is parked: at another one it is ErrNotParked.
func SkipParkedAt(ctx context.Context, db *events.DB, user string, seq int64) (still []Parked, err error) {
	return skipParked(ctx, db, user, func(p Parked) bool { return p.Seq == seq })
}

func skipParked(ctx context.Context, db *events.DB, user string, meant func(Parked) bool) (still []Parked, err error) {
	err = maintain(ctx, db, 1, func() error {
		parked, err := ListParked(ctx, db, user)
		if err != nil {
			return err
		}
		if len(parked) == 0 || !meant(parked[0]) {
			return ErrNotParked
		}
		_, err = db.Exec(ctx, `
			INSERT INTO {schema}.skipped_events (user_id, seq)
			VALUES ($1, $2)
			ON CONFLICT DO NOTHING`, user, parked[0].Seq)
		if err != nil {
			return fmt.Errorf("skip an event: %w", err)
		}
		if _, err := rebuildUser(ctx, db, user); err != nil {
			return err
		}
		still, err = ListParked(ctx, db, user)
		return err
	})
	return still, err
}
