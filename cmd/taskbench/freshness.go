package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"
)

var eventStream = operation{http.MethodGet, "/api/events", "", http.StatusOK}

// listener follows the stream of one user, and measures how long after the acknowledgement of a change it arrives.
type listener struct {
	conn *conn
	from time.Time // what was acknowledged before is warm-up

	mu       sync.Mutex
	acked    map[int64]time.Time // changes that have not arrived, by the task's version
	arrived  map[int64]time.Time // changes that were not acknowledged here, or not yet
	measured *tally
}

// measureFreshness measures name, a write, and as another result how long after its acknowledgement each change is on
// the stream of its user.
func (o *options) measureFreshness(
	ctx context.Context, users []*user, name string, connections int,
) ([]loadResult, error) {
	listening, leave := context.WithCancel(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	defer leave()
	when := o.nextWindow()
	listeners := map[*user]*listener{}
	for _, u := range users {
		l := o.newListener(when.from)
		stream, err := l.open(listening, u)
		if err != nil {
			return nil, withHint(err)
		}
		listeners[u] = l
		following.Go(func() { l.follow(stream) })
	}
	written := o.load(ctx, job{
		url: o.URL, users: users, connections: connections, when: when, pace: o.pace(when),
		step: writeForListeners(operations[name], listeners),
	})
	visible := collect(ctx, listeners, o.RequestTimeout)
	return []loadResult{
		newLoadResult(name, connections, written, when.from),
		newLoadResult(name+" to stream", connections, visible, when.from),
	}, nil
}

func (o *options) newListener(from time.Time) *listener {
	return &listener{
		conn: newConn(o.URL, o.RequestTimeout), from: from,
		acked: map[int64]time.Time{}, arrived: map[int64]time.Time{}, measured: newTally(),
	}
}

// open returns the stream when the server has begun it. Its reader closes the connection.
func (l *listener) open(ctx context.Context, u *user) (io.Reader, error) {
	answer, body, err := l.conn.send(ctx, u, eventStream, "")
	if err != nil {
		return nil, err
	}
	if answer.status != eventStream.want {
		l.conn.close()
		return nil, &badAnswer{status: answer.status}
	}
	return body, l.conn.net.SetDeadline(time.Time{})
}

// follow reads the stream to its end. What did not arrive is counted later, whatever ended it.
func (l *listener) follow(stream io.Reader) {
	defer l.conn.close()
	lines := bufio.NewScanner(stream)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		id, found := bytes.CutPrefix(lines.Bytes(), []byte("id: "))
		if seq, err := strconv.ParseInt(string(id), 10, 64); found && err == nil {
			l.arrive(seq, time.Now())
		}
	}
}

// acknowledge and arrive happen in either order: what arrives before its acknowledgement took no time.
func (l *listener) acknowledge(version int64, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.arrived[version]; !ok {
		l.acked[version] = at
		return
	}
	delete(l.arrived, version)
	l.measure(at, at)
}

func (l *listener) arrive(version int64, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	acked, ok := l.acked[version]
	if !ok {
		l.arrived[version] = at
		return
	}
	delete(l.acked, version)
	l.measure(acked, at)
}

func (l *listener) measure(acked, arrived time.Time) {
	if !acked.Before(l.from) {
		l.measured.count(acked, arrived)
	}
}

func (l *listener) missing() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// writeForListeners sends op, a write, and tells the user's listener of the acknowledgement.
func writeForListeners(op operation, listeners map[*user]*listener) step {
	return func(ctx context.Context, w *worker) error {
		u := w.anyUser()
		written, err := sendForTask(ctx, w.conn, u, op, w.anyTask(u))
		if err != nil {
			return err
		}
		listeners[u].acknowledge(written.Version, time.Now())
		return nil
	}
}

// collect waits for what is acknowledged and has not arrived, as long as for an answer.
func collect(ctx context.Context, listeners map[*user]*listener, patience time.Duration) *tally {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	missing := func() (n int) {
		for _, l := range listeners {
			n += l.missing()
		}
		return n
	}
	_ = until(waiting, func() (bool, error) { return missing() == 0, nil }) // what is missing then is counted
	total := newTally()
	for _, l := range listeners {
		l.mu.Lock()
		total.merge(l.measured)
		l.mu.Unlock()
	}
	if n := missing(); n > 0 {
		total.errors["never arrived"] = int64(n)
	}
	return total
}
