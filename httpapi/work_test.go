package httpapi

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

type workKey struct{}

// The context of a request ends in time for whoever waits, also for those who wait before the time is moved. The
// clock is the test's own: no time passes.
func TestWorkEndsInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		request := context.WithValue(t.Context(), workKey{}, "of the request")
		w := &work{Context: request, until: time.Now().Add(time.Minute)}
		defer w.finish()
		<-time.After(time.Second)
		w.limit(time.Hour) // nobody waits yet
		statement, cancel := context.WithCancel(w)
		defer cancel()
		w.limit(10 * time.Second)
		<-time.After(9 * time.Second)
		if statement.Err() != nil || w.Err() != nil {
			t.Error("it has ended too soon")
		}
		<-time.After(time.Second)
		synctest.Wait()
		if statement.Err() == nil || !errors.Is(context.Cause(statement), context.DeadlineExceeded) ||
			!errors.Is(context.Cause(w), context.DeadlineExceeded) {
			t.Errorf("behind its time: %v, %v", context.Cause(statement), context.Cause(w))
		}
		if w.Value(workKey{}) != "of the request" {
			t.Error("a value of the request is lost")
		}
	})
}

// What was begun for a request ends with it, or when the client goes away.
func TestWorkEndsWithTheRequest(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(w *work, leave func()){
		"it is answered":      func(w *work, _ func()) { w.finish() },
		"the client has left": func(_ *work, leave func()) { leave() },
	} {
		synctest.Test(t, func(t *testing.T) {
			request, leave := context.WithCancel(t.Context())
			defer leave()
			w := &work{Context: request, until: time.Now().Add(time.Minute)}
			defer w.finish()
			statement, cancel := context.WithCancel(w)
			defer cancel()
			end(w, leave)
			synctest.Wait()
			if statement.Err() == nil {
				t.Errorf("%s: it goes on", name)
			}
		})
	}
	answered := &work{Context: t.Context(), until: time.Now().Add(time.Hour)}
	answered.finish() // nobody has waited
	if answered.Err() == nil {
		t.Error("who waits for a request that is answered waits for its time to be up")
	}
}
