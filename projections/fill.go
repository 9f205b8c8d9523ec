package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"taskledger/events"
)

// copyChunk is how many rows go to a COPY at a time.
const copyChunk = 500

// fill folds the log up to its present end into the new tables, and returns that end. Fold and COPY run side by side.
func (r *rebuild) fill(ctx context.Context, p *projection) (position int64, err error) {
	rows := make(chan []change, 8)
	users := make(chan []*userFold, 8)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(rows)
		defer close(users)
		return r.fold(ctx, p, &position, rows, users)
	})
	group.Go(func() error {
		n, err := copyInto(ctx, r.pool, p.name, names(p.columns), rows, p.copyRow)
		r.rows = r.rows + n
		return err
	})
	group.Go(func() error {
		_, err := copyInto(ctx, r.pool, p.name+"_users", []string{"user_id", "seq", "parked_error", "parked_at"}, users, copyUser)
		return err
	})
	err = group.Wait()
	return position, err
}

func (r *rebuild) fold(ctx context.Context, p *projection, position *int64, rows chan<- []change, users chan<- []*userFold) error {
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	return pgx.BeginTxFunc(ctx, r.pool, options, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT coalesce(max(position), 0) FROM task_events`).Scan(position); err != nil {
			return err
		}
		f := &streamFolder{
			projection: p,
			rows:       chunked(ctx, rows),
			users:      chunked(ctx, users),
		}
		base := r.done
		var n int64
		err := events.Scan(ctx, tx, "", *position, func(e events.Event) error {
			if n++; n%2000 == 0 {
				r.report(base + n)
			}
			return f.next(e)
		})
		if err != nil {
			return err
		}
		r.report(base + n)
		return f.end()
	})
}

func (r *rebuild) report(done int64) {
	r.done = done
	if r.progress != nil {
		r.progress(done, max(done, r.total))
	}
}

// streamFolder folds the log in user order, and hands out rows and users as they are done.
type streamFolder struct {
	projection *projection
	user       *userFold
	changes    []change
	rows       chunks[change]
	users      chunks[*userFold]
}

func (f *streamFolder) next(e events.Event) error {
	if f.user == nil || f.user.user != e.UserID {
		if err := f.endUser(); err != nil {
			return err
		}
		f.user = newUserFold(e.UserID)
	}
	f.changes = f.user.apply(f.changes[:0], e)
	if f.projection.current {
		return nil
	}
	return f.rows.add(f.changes...)
}

func (f *streamFolder) endUser() error {
	if f.user == nil {
		return nil
	}
	if f.projection.current {
		for _, c := range f.user.current() {
			if err := f.rows.add(c); err != nil {
				return err
			}
		}
	}
	u := *f.user
	u.tasks = nil
	return f.users.add(&u)
}

func (f *streamFolder) end() error {
	if err := f.endUser(); err != nil {
		return err
	}
	return errors.Join(f.rows.flush(), f.users.flush())
}

// current is each task's last state, as a change, in order of id.
func (u *userFold) current() []change {
	out := make([]change, 0, len(u.tasks))
	for _, t := range u.tasks {
		out = append(out, change{after: t})
	}
	slices.SortFunc(out, func(a, b change) int { return compareIDs(a.after.ID, b.after.ID) })
	return out
}

func compareIDs(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) }

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

func (p *projection) copyRow(c change) []any {
	values := make([]any, len(p.columns))
	for i, column := range p.columns {
		values[i] = column.value(c)
	}
	return values
}

func copyUser(u *userFold) []any {
	if u.parked == nil {
		return []any{u.user, u.seq, nil, nil}
	}
	return []any{u.user, u.seq, *u.parked, time.Now()}
}

// copyInto copies what comes on the channel into a table of the new read model.
func copyInto[T any](ctx context.Context, pool *pgxpool.Pool, table string, columns []string, from <-chan []T, row func(T) []any) (int64, error) {
	var chunk []T
	next := func() ([]any, error) {
		for len(chunk) == 0 {
			more, ok := <-from
			if !ok {
				return nil, ctx.Err()
			}
			chunk = more
		}
		values := row(chunk[0])
		chunk = chunk[1:]
		return values, nil
	}
	n, err := pool.CopyFrom(ctx, pgx.Identifier{shadow, table}, columns, pgx.CopyFromFunc(next))
	if err != nil {
		return n, fmt.Errorf("copy into %s: %w", table, err)
	}
	return n, nil
}
