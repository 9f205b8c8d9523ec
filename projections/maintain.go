package projections

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

// ErrMaintenance: another rebuild, or another of the operator's commands that must not undo each other's work, has not
// ended.
var ErrMaintenance = errors.New("another rebuild, adopt, import or erase, or a command that changes parked users, " +
	"is running on this ledger")

// maintain runs work while no other process does so on this ledger; so many more connections than one are needed for
// it at once. The lock is held in a transaction, which works behind a transaction pooler too, and which has no
// snapshot, so it holds up no vacuum.
func maintain(ctx context.Context, db *events.DB, connections int, work func() error) error {
	var workErr error
	err := db.Begin(ctx, pgx.TxOptions{}, func(tx *events.Tx) error {
		var locked bool
		// This session is meant to be idle while work is under way, for as long as that takes.
		_, err := events.One(ctx, tx, `
			SELECT pg_try_advisory_xact_lock($1), set_config('idle_in_transaction_session_timeout', '0', true)`,
			[]any{db.LockKey("maintenance")}, &locked, nil)
		if err != nil {
			return fmt.Errorf("lock the ledger for maintenance: %w", err)
		}
		if !locked {
			return ErrMaintenance
		}
		if workErr = db.Spare(ctx, connections); workErr == nil {
			workErr = work()
		}
		return nil
	})
	if workErr != nil {
		return workErr
	}
	return err
}
