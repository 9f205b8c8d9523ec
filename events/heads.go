package events

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"
)

// Look is what a look at a stream's head tells: where the stream ends, the generation of the user's part of the read
// model, 0 without one, and whether that follows the stream no more.
type Look struct {
	Head
	Generation int64
	Parked     bool
}

// Head looks where the user's stream ends. All who ask while a look is under way share the next one, for many users in
// one statement: it is the one thing that each read of a kept answer costs the database. The look begins after the
// call.
func (l *Log) Head(ctx context.Context, user string) (Look, error) {
	k, at, mine := l.looks.join(user)
	if mine {
		l.look()
	} else {
		select {
		case <-k.done:
		case <-ctx.Done():
			return Look{}, ctx.Err()
		}
	}
	return k.heads[at], k.err
}

// looks are the look under way, and the one that gathers meanwhile.
type looks struct {
	mu      sync.Mutex
	running bool // somebody runs a look, or is about to
	next    *look
}

// look is one statement for many users. heads, one for each, and err are set when done is closed.
type look struct {
	users []string
	heads []Look
	err   error
	done  chan struct{}
}

// join adds the user to the next look, in the place at; mine tells that the caller is to run it.
func (ls *looks) join(user string) (k *look, at int, mine bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.next == nil {
		ls.next = &look{done: make(chan struct{})}
	}
	k, mine = ls.next, !ls.running
	ls.running = true
	if at = slices.Index(k.users, user); at < 0 {
		at = len(k.users)
		k.users = append(k.users, user)
	}
	return k, at, mine
}

// begin returns the look that has gathered.
func (ls *looks) begin() *look {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	k := ls.next
	ls.next = nil
	return k
}

// end tells whether there is another look to run.
func (ls *looks) end() (more bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.running = ls.next != nil
	return ls.running
}

// look runs the next look, and has the one after it run.
func (l *Log) look() {
	runtime.Gosched() // who is about to ask, and waits for a processor only, shares it
	k := l.looks.begin()
	k.heads = make([]Look, len(k.users))
	ctx, cancel := context.WithTimeout(context.Background(), statementTimeout)
	defer cancel()
	if err := l.readHeads(ctx, k); err != nil {
		k.err = fmt.Errorf("look at the heads of streams: %w", err)
	}
	close(k.done)
	if l.looks.end() {
		go l.look()
	}
}

// A look for one user is a statement of its own: with unnest it costs PostgreSQL a quarter more.
const (
	headOfOne = `
		SELECT 1::bigint, e.seq, e.position, e.event_id, coalesce((` + standing + ` WHERE s.user_id = $1), 0)
		FROM {schema}.task_events e
		WHERE e.user_id = $1
		ORDER BY e.seq DESC
		LIMIT 1`
	headsOfMany = `
		SELECT u.place, h.seq, h.position, h.event_id, coalesce((` + standing + ` WHERE s.user_id = u.user_id), 0)
		FROM unnest($1::text[]) WITH ORDINALITY u(user_id, place)
		CROSS JOIN LATERAL (
			SELECT e.seq, e.position, e.event_id
			FROM {schema}.task_events e
			WHERE e.user_id = u.user_id
			ORDER BY e.seq DESC
			LIMIT 1
		) h`
	// standing is a user's generation, as -1-n of a user who is parked.
	standing = `
			SELECT CASE WHEN s.parked_error IS NULL THEN s.generation ELSE -s.generation - 1 END
			FROM {schema}.users s`
)

func (l *Log) readHeads(ctx context.Context, k *look) error {
	text, args := headsOfMany, []any{k.users}
	if len(k.users) == 1 {
		text, args = headOfOne, []any{k.users[0]}
	}
	return l.db.Query(ctx, text, args, func(rows pgx.Rows) error {
		for rows.Next() {
			var (
				place int64 // from 1 on
				h     Look
			)
			err := rows.Scan(&place, &h.Seq, &h.Position, (*[16]byte)(&h.EventID), &h.Generation)
			if err != nil {
				return err
			}
			if h.Parked = h.Generation < 0; h.Parked {
				h.Generation = -h.Generation - 1
			}
			k.heads[place-1] = h
		}
		return rows.Err()
	})
}
