package main

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"
)

// pace gives a worker the moment from which its next request counts, when that has come; false when there is no more.
type pace func(ctx context.Context) (time.Time, bool)

func (o *options) pace(when window) pace {
	if o.Rate == 0 {
		return when.closedLoop
	}
	s := &schedule{start: when.from.Add(-o.Warmup), until: when.until, rate: o.Rate}
	return s.next
}

// closedLoop sends at once.
func (w window) closedLoop(context.Context) (time.Time, bool) {
	now := time.Now()
	return now, now.Before(w.until)
}

// schedule is an open loop: rate requests a second are due, whatever becomes of those before.
type schedule struct {
	start, until time.Time
	rate         float64
	given        atomic.Int64
}

// next counts a request from when it was due, if no connection was free then: that is the server's doing. It does not
// count how late a timer of this program is, some 0.5 ms.
func (s *schedule) next(ctx context.Context) (time.Time, bool) {
	due := s.start.Add(time.Duration(float64(s.given.Add(1)-1) / s.rate * float64(time.Second)))
	if !due.Before(s.until) {
		return due, false
	}
	left := time.Until(due)
	if left <= 0 {
		return due, true
	}
	select {
	case <-ctx.Done():
		return due, false
	case <-time.After(left):
		return time.Now(), true
	}
}

// errNoTurn is a request that was due and found no connection free within the request timeout: a timeout like others.
var errNoTurn = fmt.Errorf("wait for a free connection: %w", os.ErrDeadlineExceeded)
