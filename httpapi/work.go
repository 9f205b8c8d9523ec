package httpapi

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"taskledger/httpapi/auth"
)

// work is the context of what is done for a request, and ends when the time for that is up. Most requests are answered
// before anybody waits for its end: the timer, and all that a context takes, is made for who does.
type work struct {
	context.Context // of the request
	caller          auth.Caller

	mu     sync.Mutex
	until  time.Time
	ending context.Context // nil until somebody waits
	cancel context.CancelCauseFunc
	timer  *time.Timer
	over   bool // the request is answered
}

func workOf(c echo.Context) *work { return c.Request().Context().(*work) }

// forever is a time that no request takes.
const forever = time.Duration(math.MaxInt64)

// limit sets the time that is left.
func (w *work) limit(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.until = time.Now().Add(d)
	if w.timer != nil {
		w.timer.Reset(d)
	}
}

// finish ends the work.
func (w *work) finish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	if w.ending != nil {
		w.timer.Stop()
		w.cancel(nil)
	}
}

// wait returns the context that ends in time.
func (w *work) wait() context.Context {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ending == nil {
		w.ending, w.cancel = context.WithCancelCause(w.Context)
		w.timer = time.AfterFunc(time.Until(w.until), func() { w.cancel(context.DeadlineExceeded) })
		if w.over {
			w.timer.Stop()
			w.cancel(nil)
		}
	}
	return w.ending
}

// Done implements context.Context.
func (w *work) Done() <-chan struct{} { return w.wait().Done() }

// Err implements context.Context.
func (w *work) Err() error { return w.wait().Err() }

// Value implements context.Context. Who derives a context from this one asks for Done before, and is given the one that
// ends in time.
func (w *work) Value(key any) any {
	w.mu.Lock()
	of := w.Context
	if w.ending != nil {
		of = w.ending
	}
	w.mu.Unlock()
	return of.Value(key)
}
