package main

import (
	"bufio"
	"context"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// listener follows a user's live changes. When a stream breaks off it connects again, to either server, and says what
// it saw last.
type listener struct {
	stage   *stage
	account *account
	random  *rand.Rand

	mu      sync.Mutex
	heard   []entry
	streams int
}

func (l *listener) run(ctx context.Context) {
	for ctx.Err() == nil && !l.stage.t.Failed() {
		l.follow(ctx, l.stage.nodes[l.random.IntN(len(l.stage.nodes))])
		rest(ctx, l.random, 10*time.Millisecond, 100*time.Millisecond)
	}
}

// follow reads one stream to its end.
func (l *listener) follow(ctx context.Context, n *node) {
	base, _ := n.address()
	req, err := http.NewRequestWithContext(ctx, "GET", base+"/api/events", nil)
	if err != nil {
		l.stage.t.Error(err)
		return
	}
	req.Header.Set("Authorization", "Bearer "+l.account.token)
	req.Header.Set("Last-Event-ID", strconv.Itoa(l.last()))
	resp, err := l.stage.http.Do(req)
	if err != nil {
		return // the server is down
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		// 422: what PostgreSQL lost of the read models when it was killed is not derived again yet.
		if resp.StatusCode != http.StatusServiceUnavailable && resp.StatusCode != http.StatusUnprocessableEntity {
			l.stage.t.Errorf("a stream: %d; the server said:\n%s", resp.StatusCode, n.stderr)
		}
		return
	}
	l.mu.Lock()
	l.streams++
	l.mu.Unlock()
	data := ""
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if value, found := strings.CutPrefix(lines.Text(), "data: "); found {
			data = value
		}
		if lines.Text() == "" && data != "" {
			l.hear(data)
			data = ""
		}
	}
}

func (l *listener) hear(data string) {
	var e entry
	if err := json.Unmarshal([]byte(data), &e); err != nil || e.Seq != int64(l.last())+1 {
		l.stage.t.Errorf("%s: behind event %d the stream has %s, %v", l.account.user, l.last(), data, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = append(l.heard, e)
}

func (l *listener) last() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.heard)
}

// audit waits until the listener has heard the whole history.
func (l *listener) audit() {
	ctx, cancel := context.WithTimeout(l.stage.t.Context(), patience)
	defer cancel()
	history := l.stage.history(l.account)
	for l.last() < len(history) {
		if !tick(ctx) {
			l.stage.t.Errorf("%s: %d events were streamed of %d", l.account.user, l.last(), len(history))
			return
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, e := range l.heard {
		if i >= len(history) || e != history[i] {
			l.stage.t.Errorf("%s: streamed %+v, which is not in the history", l.account.user, e)
			return
		}
	}
}
