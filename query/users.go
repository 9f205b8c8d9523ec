package query

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

// User is what the read model knows of a user.
type User struct {
	ID     string
	Seq    int64 // that the read model shows
	Live   int   // tasks
	Parked bool
}

// behindAll is the last character, as often as the longest id has room for it: it is behind all that an id can go on
// with.
var behindAll = strings.Repeat("\U0010FFFF", 64)

// FindUsers lists users whose id begins with the prefix, ordered by id, at most limit of them. It is for operators:
// the connections of db see every user.
func FindUsers(ctx context.Context, db *events.DB, prefix string, limit int) (found []User, err error) {
	err = db.Query(ctx, `
		SELECT user_id, seq, live, parked_error IS NOT NULL
		FROM {schema}.users
		WHERE user_id >= $1 AND user_id <= $2
		ORDER BY user_id
		LIMIT $3`, []any{prefix, prefix + behindAll, limit}, func(rows pgx.Rows) (err error) {
		found, err = pgx.CollectRows(rows, pgx.RowToStructByPos[User])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find users: %w", err)
	}
	return found, nil
}
