package events

import (
	"context"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
)

// Look is what a look at a stream's head tells: where the stream ends, the generation of the read model, and whether
// that follows the stream no more.
type Look struct {
	Head
	Generation int64
	Parked     bool
}

// Head looks where the user's stream ends. All who ask while a look is under way share the next one, for many users in
// one statement: it is the one thing that each read of a kept answer costs the database. The look begins after the
// call.
func (l *Log) Head(ctx context.Context, user string) (Look, error) {
	k, mine := l.looks.join(user)
	if mine {
		l.look(k)
	} else {
		select {
		case <-k.done:
		case <-ctx.Done():
			return Look{}, ctx.Err()
		}
	}
	return k.heads[user], k.err
}

// looks are the look under way, and the one that gathers meanwhile.
type looks struct {
	mu      sync.Mutex
	running bool
	next    *look
}

// look is one statement for many users. heads and err are set when done is closed.
type look struct {
	users []string
	heads map[string]Look // by user; the users who ask are its keys
	err   error
	done  chan struct{}
}

// join adds the user to the next look; mine tells that the caller is to run it.
func (ls *looks) join(user string) (k *look, mine bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if k = ls.next; k == nil {
		k = &look{heads: map[string]Look{}, done: make(chan struct{})}
	}
	if _, asked := k.heads[user]; !asked {
		k.heads[user] = Look{}
		k.users = append(k.users, user)
	}
	if ls.running {
		ls.next = k
		return k, false
	}
	ls.running = true
	return k, true
}

// leave returns the look that has gathered meanwhile.
func (ls *looks) leave() (next *look) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	next, ls.next = ls.next, nil
	ls.running = next != nil
	return next
}

// look runs a look, and has the next one run.
func (l *Log) look(k *look) {
	ctx, cancel := context.WithTimeout(context.Background(), statementTimeout)
	defer cancel()
	if err := l.readHeads(ctx, k); err != nil {
		k.err = fmt.Errorf("look at the heads of streams: %w", err)
	}
	close(k.done)
	if next := l.looks.leave(); next != nil {
		go l.look(next)
	}
}

func (l *Log) readHeads(ctx context.Context, k *look) error {
	return l.db.Query(ctx, `
		SELECT u.user_id, coalesce(h.seq, 0), coalesce(h.position, 0), h.event_id,
			(SELECT generation FROM {schema}.checkpoints WHERE projection = 'tasks'),
			EXISTS (SELECT FROM {schema}.users p WHERE p.user_id = u.user_id AND p.parked_error IS NOT NULL)
		FROM unnest($1::text[]) u(user_id)
		LEFT JOIN LATERAL (
			SELECT e.seq, e.position, e.event_id
			FROM {schema}.task_events e
			WHERE e.user_id = u.user_id
			ORDER BY e.seq DESC
			LIMIT 1
		) h ON true`, []any{k.users}, func(rows pgx.Rows) error {
		for rows.Next() {
			var (
				user string
				h    Look
				id   *[16]byte
			)
			if err := rows.Scan(&user, &h.Seq, &h.Position, &id, &h.Generation, &h.Parked); err != nil {
				return err
			}
			if id != nil {
				h.EventID = *id
			}
			k.heads[user] = h
		}
		return rows.Err()
	})
}
