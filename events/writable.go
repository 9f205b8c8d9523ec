package events

import (
	"context"
	"errors"
	"fmt"
)

// CheckWritable returns why nothing could be appended now. What the last append met with is not believed for ever: it
// is tried again, in a transaction that is rolled back.
func (l *Log) CheckWritable(ctx context.Context) error {
	var readOnly bool
	_, err := One(
		ctx,
		l.db,
		`SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'`,
		nil,
		&readOnly,
	)
	if err != nil {
		return fmt.Errorf("ask whether the database takes writes: %w", err)
	}
	if readOnly {
		return errors.New("the database takes no writes")
	}
	if !l.failed.Load() {
		return nil
	}
	err = l.Exclusively(ctx, func(x *Exclusive) error {
		if _, err := x.Exec(ctx, insertProbe); err != nil {
			return err
		}
		return errProbed
	})
	if !errors.Is(err, errProbed) {
		return fmt.Errorf("append: %w", err)
	}
	l.failed.Store(false)
	return nil
}

// errProbed has a transaction rolled back that came to its end.
var errProbed = errors.New("the log can be appended to")

// insertProbe stores an event that nobody will see, at a seq that no stream has.
const insertProbe = `
	INSERT INTO {schema}.task_events (
		user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at
	)
	SELECT 'system', 9223372036854775807, id, 'Probe', 1, '{}', id, id, 'system', '', clock_timestamp()
	FROM gen_random_uuid() id`
