package projections

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

const (
	// maxNews is over how many positions the log is asked whom they concern; over more, after an outage, everyone
	// looks.
	maxNews = 10_000
	// newsRetry is when that is asked again after the database was away.
	newsRetry = time.Second
)

// watch knows who wants to hear of a user's events, and how far they have been told.
type watch struct {
	mu    sync.Mutex // held while they are told, so that who has left is told no more
	users map[string]map[*watcher]bool
	told  int64 // the position through which the watchers were told
	read  int64 // the position that the read model shows
	news  chan struct{}
	first chan struct{} // holds one value when somebody watches after nobody did
}

type watcher struct {
	announce func(seq int64)
}

func newWatch() watch {
	return watch{users: map[string]map[*watcher]bool{}, news: make(chan struct{}, 1), first: make(chan struct{}, 1)}
}

// Watch calls announce with the user's last seq, or 0 for one that is not known, each time the read model has come to
// show more of the user's events, whichever process wrote and applied them, until leave is called. announce must not
// block, nor call leave.
func (r *Runner) Watch(user string, announce func(seq int64)) (leave func()) {
	w := &watcher{announce: announce}
	ws := &r.watch
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if len(ws.users) == 0 {
		signal(ws.first)
	}
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

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (ws *watch) none() bool {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return len(ws.users) == 0
}

// tell tells those who watch the user. The caller holds mu.
func (ws *watch) tell(user string, seq int64) {
	for w := range ws.users[user] {
		w.announce(seq)
	}
}

// tellAll has everybody look who watches. The caller holds mu.
func (ws *watch) tellAll() {
	for user := range ws.users {
		ws.tell(user, 0)
	}
}

// applied tells of a batch that this process has applied. Where another one has applied what was before it, the log is
// asked.
func (ws *watch) applied(d *events.Delivery) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.read = d.To
	switch {
	case len(ws.users) == 0:
		ws.told = d.To
	case ws.told == d.From:
		for i := range d.Events {
			ws.tell(d.Events[i].UserID, d.Events[i].Seq)
		}
		ws.told = d.To
	default:
		signal(ws.news)
	}
}

// moved takes note of where the checkpoint was found. One that has gone back is one after a failover.
func (ws *watch) moved(position int64) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.read = position
	if len(ws.users) == 0 || position < ws.told {
		ws.told = position
		ws.tellAll()
	}
	if ws.told < position {
		signal(ws.news)
	}
}

// pending is the stretch of the log that the watchers have not been told of.
func (ws *watch) pending() (after, through int64) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return ws.told, ws.read
}

// tellWatchers tells the watchers of what other processes have applied, until ctx ends: one query for all of them.
// Whoever comes in between finds in the read model what was told before.
func (r *Runner) tellWatchers(ctx context.Context) {
	for {
		var retry <-chan time.Time
		if after, through := r.watch.pending(); after < through {
			if err := r.tellNews(ctx, after, through); err != nil {
				r.log.Debug("watchers could not be told", "err", events.Cause(err))
				retry = time.After(newsRetry)
			}
		}
		select {
		case <-r.watch.news:
		case <-retry:
		case <-ctx.Done():
			return
		}
	}
}

// tellNews tells the watchers of the events behind position after, through position through.
func (r *Runner) tellNews(ctx context.Context, after, through int64) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	ws := &r.watch
	if through-after > maxNews {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		ws.tellAll()
		ws.told = max(ws.told, through)
		return nil
	}
	heads := map[string]int64{}
	err := r.db.Query(ctx, `
		SELECT user_id, max(seq)
		FROM {schema}.task_events
		WHERE position > $1 AND position <= $2
		GROUP BY user_id`, []any{after, through}, func(rows pgx.Rows) error {
		var user string
		var seq int64
		_, err := pgx.ForEachRow(rows, []any{&user, &seq}, func() error { heads[user] = seq; return nil })
		return err
	})
	if err != nil {
		return fmt.Errorf("read whom the log is about: %w", err)
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for user, seq := range heads {
		ws.tell(user, seq)
	}
	ws.told = max(ws.told, through)
	return nil
}
