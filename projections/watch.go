package projections

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// maxNews is over how many positions the log is asked whom they concern; over more, at a start or after an outage, everyone looks.
const maxNews = 10_000

// watchers are those who want to hear of a user's events.
type watchers struct {
	mu    sync.Mutex // held while they are told, so that who has left is told no more
	users map[string]map[*watcher]bool
}

type watcher struct {
	announce func(seq int64)
}

// Watch calls announce with the user's last seq, or 0 for one that is not known, each time every read model has come to show more of the user's events, whichever
// process wrote and applied them, until leave is called. announce must not block, nor call leave.
func (r *Runner) Watch(user string, announce func(seq int64)) (leave func()) {
	w := &watcher{announce: announce}
	ws := &r.watchers
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.users[user] == nil {
		ws.users[user] = map[*watcher]bool{}
	}
	ws.users[user][w] = true
	return func() {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		delete(ws.users[user], w)
		if len(ws.users[user]) == 0 {
			delete(ws.users, user)
		}
	}
}

func (ws *watchers) none() bool {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return len(ws.users) == 0
}

func (ws *watchers) tell(user string, seq int64) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.users[user] {
		w.announce(seq)
	}
}

// tellAll tells everyone that there may be something.
func (ws *watchers) tellAll() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, user := range ws.users {
		for w := range user {
			w.announce(0)
		}
	}
}

// announce tells the watchers what is new, until ctx ends: one query for all of them, and none while there are none. Whoever comes
// in between finds in the read models what was announced before.
func (r *Runner) announce(ctx context.Context) {
	var told int64
	for ctx.Err() == nil {
		moved := r.moved.wait() // before the look, or what happens in between is missed
		shown := r.shown()
		if r.watchers.none() {
			told = shown
		}
		var retry <-chan time.Time
		if told < shown {
			if err := r.news(ctx, told, shown); err != nil {
				r.log.Debug("watchers could not be told", "err", safeError(err))
				retry = time.After(pollInterval)
			} else {
				told = shown
			}
		}
		select {
		case <-moved:
		case <-retry:
		case <-ctx.Done():
		}
	}
}

// news tells the watchers of the events behind position after, through position through.
func (r *Runner) news(ctx context.Context, after, through int64) error {
	if through-after > maxNews {
		r.watchers.tellAll()
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := r.pool.Query(ctx, `
		SELECT user_id, max(seq)
		FROM task_events
		WHERE position > $1 AND position <= $2
		GROUP BY user_id`, after, through)
	if err != nil {
		return fmt.Errorf("read news: %w", err)
	}
	var (
		user string
		seq  int64
	)
	_, err = pgx.ForEachRow(rows, []any{&user, &seq}, func() error {
		r.watchers.tell(user, seq)
		return nil
	})
	return err
}

// shown is the position that every projection is known to have reached.
func (r *Runner) shown() int64 {
	shown := r.followers[0].progress.at()
	for _, f := range r.followers[1:] {
		shown = min(shown, f.progress.at())
	}
	return shown
}
