package migrations

import (
	"context"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// What tests need to run other migrations, and to be impatient.
var (
	Files   = files
	Latest  = latest
	LockKey = lockKey
)

// UpWith runs other migrations, whose schema is not that of a ledger.
func UpWith(ctx context.Context, pool *pgxpool.Pool, schema string, files fs.FS, wait time.Duration) error {
	return locked(ctx, pool, schema, wait, func() error { return migrate(ctx, pool, schema, files) })
}
