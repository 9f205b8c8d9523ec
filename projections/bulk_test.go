package projections

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"

	"taskledger/events"
)

// A command that ends with the last batch that it has appended and seen applied: who listens in another process hears
// of that too.
func TestBulkTellsOthersOfItsEnd(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	server, command := writer(t, db), writer(t, db)
	server.run()
	heard := make(chan int64, 100)
	defer server.runner.Watch("u", func(seq int64) { heard <- seq })()
	eventually(t, "the server listens", func() bool { return server.runner.listener.Load() != 0 })
	for n := int64(1); n <= 20; n++ {
		err := Bulk(t.Context(), command.log, slog.New(slog.DiscardHandler), func(r *Runner) error {
			mark := r.Mark()
			return r.Await(t.Context(), command.append("u", uuid.New(), events.TaskCreated{Title: "a"}), mark)
		})
		if err != nil {
			t.Fatal(err)
		}
		for seq := int64(0); seq < n; {
			select {
			case seq = <-heard:
			case <-time.After(time.Minute):
				t.Fatalf("nothing is heard of event %d", n)
			}
		}
	}
}

func TestBulkIsAlone(t *testing.T) {
	t.Parallel()
	p := writer(t, newDB(t))
	silent := slog.New(slog.DiscardHandler)
	failure := errors.New("failed")
	err := Bulk(t.Context(), p.log, silent, func(*Runner) error {
		if err := Bulk(
			t.Context(),
			p.log,
			silent,
			func(*Runner) error { return nil },
		); !errors.Is(
			err,
			ErrMaintenance,
		) {
			t.Errorf("a second one: %v", err)
		}
		if _, err := Rebuild(t.Context(), p.db, "", nil); !errors.Is(err, ErrMaintenance) {
			t.Errorf("a rebuild beside it: %v", err)
		}
		return failure
	})
	if !errors.Is(err, failure) {
		t.Errorf("the work's error: %v", err)
	}
}
