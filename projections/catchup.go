package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"taskledger/events"
)

// CatchUp brings the read model up to the end of the log, beside the processes that follow the log anyway, and tells
// those.
func CatchUp(ctx context.Context, db *events.DB, log *slog.Logger) error {
	if err := catchUp(ctx, db, log); err != nil {
		return err
	}
	return tell(ctx, db)
}

func catchUp(ctx context.Context, db *events.DB, log *slog.Logger) error {
	f := newFollower(newReadModel(), Name, db, log, nil)
	for {
		var at events.Checkpoint
		_, err := events.One(ctx, db, `
			SELECT position, generation
			FROM {schema}.checkpoints
			WHERE projection = $1`, []any{Name}, &at.Position, &at.Generation)
		if err != nil {
			return fmt.Errorf("catch up: %w", err)
		}
		b, err := events.Read(ctx, db, at.Position, maxEvents)
		if err != nil {
			return fmt.Errorf("catch up: %w", err)
		}
		if len(b.Events) == 0 {
			return nil
		}
		err = f.apply(ctx, &events.Delivery{Batch: b, Generation: at.Generation})
		if errors.Is(err, errOvertaken) {
			f.forget()
		} else if err != nil {
			return fmt.Errorf("catch up: %w", err)
		}
	}
}

// tell tells the processes that listen that the read model has moved.
func tell(ctx context.Context, db *events.DB) error {
	if _, err := db.Exec(ctx, notifyAny, channel(db), db.LockKey("listen")); err != nil {
		return fmt.Errorf("tell the servers: %w", err)
	}
	return nil
}
