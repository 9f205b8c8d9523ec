package projections

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"taskledger/events"
)

// copyChunk is about how many rows are handed on at a time.
const copyChunk = 500

// fill folds the log up to its present end into the new tables, and returns that end. Reading, fold and COPY run side
// by side.
func (r *rebuild) fill(ctx context.Context) (position int64, err error) {
	log := make(chan []events.Event, 8)
	tasks, history, users := make(chan []events.Task, 8), make(chan []change, 8), make(chan []userState, 8)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(log)
		return r.db.Begin(ctx, readOnlySnapshot, func(tx *events.Tx) (err error) {
			position, err = r.read(ctx, tx, chunked(ctx, log))
			return err
		})
	})
	group.Go(func() error {
		defer close(tasks)
		defer close(history)
		defer close(users)
		return r.fold(log, &streamFolder{
			generation: r.generation,
			tasks:      chunked(ctx, tasks),
			history:    chunked(ctx, history),
			users:      chunked(ctx, users),
		})
	})
	var rows [3]int64
	group.Go(func() (err error) {
		rows[0], err = copyInto(ctx, r.db, taskTable, taskColumns, tasks)
		return err
	})
	group.Go(func() (err error) {
		rows[1], err = copyInto(ctx, r.db, historyTable, historyColumns, history)
		return err
	})
	group.Go(func() (err error) {
		rows[2], err = copyInto(ctx, r.db, userTable, userColumns, users)
		return err
	})
	err = group.Wait()
	r.rows = rows[0] + rows[1] + rows[2]
	return position, err
}

// read reads the whole log in the order of users.
func (r *rebuild) read(ctx context.Context, tx *events.Tx, log chunks[events.Event]) (position int64, err error) {
	_, err = events.One(ctx, tx, `
		SELECT coalesce(max(position), 0), count(*)
		FROM {schema}.task_events`, nil, &position, &r.total)
	if err != nil {
		return 0, err
	}
	if err = events.ReadStreams(ctx, tx, "", position, func(e events.Event) error { return log.add(e) }); err != nil {
		return 0, err
	}
	return position, log.flush()
}

// fold folds what was read.
func (r *rebuild) fold(log <-chan []events.Event, f *streamFolder) error {
	for chunk := range log {
		for i := range chunk {
			if r.done++; r.done%2000 == 0 {
				r.report()
			}
			if err := f.next(&chunk[i]); err != nil {
				return err
			}
		}
	}
	r.report()
	return f.end()
}

func (r *rebuild) report() {
	if r.progress != nil {
		r.progress(r.done, r.total)
	}
}

// streamFolder folds the log in user order, and hands out rows as they are done.
type streamFolder struct {
	generation int64
	user       *userFold
	changes    []change
	tasks      chunks[events.Task]
	history    chunks[change]
	users      chunks[userState]
}

func (f *streamFolder) next(e *events.Event) (err error) {
	if f.user == nil || f.user.user != e.UserID {
		if err := f.endUser(); err != nil {
			return err
		}
		f.user = newUserFold(e.UserID)
		f.user.generation = f.generation
	}
	if f.changes, err = f.user.apply(f.changes[:0], e); err != nil {
		return err
	}
	return f.history.add(f.changes...)
}

func (f *streamFolder) endUser() error {
	if f.user == nil {
		return nil
	}
	if err := f.tasks.add(f.user.current()...); err != nil {
		return err
	}
	return f.users.add(f.user.userState)
}

func (f *streamFolder) end() error {
	if err := f.endUser(); err != nil {
		return err
	}
	for _, flush := range []func() error{f.tasks.flush, f.history.flush, f.users.flush} {
		if err := flush(); err != nil {
			return err
		}
	}
	return nil
}

// chunks sends items on a channel many at a time.
type chunks[T any] struct {
	ctx     context.Context
	to      chan<- []T
	pending *[]T
}

func chunked[T any](ctx context.Context, to chan<- []T) chunks[T] {
	return chunks[T]{ctx: ctx, to: to, pending: new([]T)}
}

func (c chunks[T]) add(items ...T) error {
	*c.pending = append(*c.pending, items...)
	if len(*c.pending) < copyChunk {
		return nil
	}
	return c.flush()
}

func (c chunks[T]) flush() error {
	select {
	case c.to <- *c.pending:
		*c.pending = make([]T, 0, copyChunk)
		return nil
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}

// copyInto copies what comes on the channel into a new table.
func copyInto[T any](ctx context.Context, db *events.DB, t *table, columns columns[T], from <-chan []T) (int64, error) {
	next := func() ([]T, error) {
		chunk, ok := <-from
		if !ok {
			return nil, ctx.Err()
		}
		return chunk, nil
	}
	var n int64
	err := db.Begin(ctx, pgx.TxOptions{}, func(tx *events.Tx) (err error) {
		n, err = events.CopyRows(ctx, tx, t.name+suffix, columns.encoded(), next)
		return err
	})
	if err != nil {
		return n, fmt.Errorf("copy into %s: %w", t.name, err)
	}
	return n, nil
}
