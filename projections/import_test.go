package projections

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"taskledger/events"
)

// export is the export of a ledger with n users of seven events each, of whom one was erased.
func export(t *testing.T, n int) []byte {
	t.Helper()
	p := projected(t, n)
	e := events.Event{UserID: "user-00", EventID: uuid.New(), CommandID: uuid.New(), Actor: "system", RequestID: "r"}
	if err := p.log.Erase(t.Context(), &e, "", nil); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := events.WriteExport(t.Context(), p.db, "", &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// disturbed is an export that calls disturb once in the middle of being read for the second time.
type disturbed struct {
	*bytes.Reader
	again   bool
	size    int64
	disturb func()
}

func disturbing(text []byte, disturb func()) *disturbed {
	return &disturbed{Reader: bytes.NewReader(text), size: int64(len(text)), disturb: sync.OnceFunc(disturb)}
}

func (d *disturbed) Seek(offset int64, whence int) (int64, error) {
	d.again = true
	return d.Reader.Seek(offset, whence)
}

func (d *disturbed) Read(b []byte) (int, error) {
	if d.again && int64(d.Len()) < d.size/2 {
		d.disturb()
	}
	return d.Reader.Read(b)
}

// quiet logs nothing.
var quiet = slog.New(slog.DiscardHandler)

// Others write while an export is imported, and wait only for its last moment. Whoever reads the log meanwhile skips
// nothing.
func TestImportBesideWriters(t *testing.T) {
	t.Parallel()
	text := export(t, 40)
	p := writer(t, newDB(t))
	p.run()
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	var appended atomic.Int64
	for i := range 3 {
		other := writer(t, p.db)
		work.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				other.append(fmt.Sprintf("writer-%d-%d", i, n), uuid.New(), events.TaskCreated{Title: fmt.Sprint(n)})
				appended.Add(1)
			}
		})
	}
	seen, end := map[string]int{}, int64(0)
	read := func() (n int) {
		b, err := events.Read(context.Background(), p.db, end, 10_000)
		if err != nil {
			t.Error(err)
		}
		for _, e := range b.Events {
			seen[e.UserID]++
		}
		end = b.To
		return len(b.Events)
	}
	work.Go(func() {
		for ctx.Err() == nil {
			read()
		}
	})
	eventually(t, "others write", func() bool { return appended.Load() > 20 })
	report, err := Import(t.Context(), p.db, quiet, disturbing(text, func() {
		now := appended.Load()
		eventually(t, "others write meanwhile", func() bool { return appended.Load() > now+20 })
	}))
	if err != nil || report.Totals != (events.Totals{Events: 39*6 + 1, Users: 40}) || !report.Whole {
		t.Errorf("%+v, %v", report, err)
	}
	now := appended.Load()
	eventually(t, "others write afterwards", func() bool { return appended.Load() > now+20 })
	stop()
	work.Wait()
	for read() > 0 {
	}
	if len(seen) != 40+int(appended.Load()) || seen["user-00"] != 1 || seen["user-39"] != 6 {
		t.Errorf("a reader of the log saw %d users and %d, %d events of two of them, want 40 and %d, 1, 6",
			len(seen), seen["user-00"], seen["user-39"], appended.Load())
	}
	p.visible(end)
	p.verified()
	t.Logf("%d events of others; they waited %v", appended.Load(), report.Locked)
}

// Who writes for a user that is being imported is not kept waiting: the import gives way, and keeps nothing.
func TestImportGivesWay(t *testing.T) {
	t.Parallel()
	text := export(t, 1200) // more than one portion
	for name, user := range map[string]string{"of a user who is stored": "user-01", "of an erased one": "user-00"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := writer(t, newDB(t))
			written := make(chan struct{})
			_, err := Import(t.Context(), p.db, quiet, disturbing(text, func() {
				go func() {
					defer close(written)
					p.append(user, uuid.New(), events.TaskCreated{Title: "mine"})
				}()
				eventually(t, "it is written, or waits", func() bool {
					return value[bool](p, `
						SELECT EXISTS (SELECT FROM {schema}.task_events WHERE user_id = $1)
						OR EXISTS (SELECT FROM pg_locks
							WHERE locktype = 'transactionid' AND NOT granted AND database IS NULL
							AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database()))`, user)
				})
			}))
			if !errors.Is(err, events.ErrWritten) {
				t.Errorf("the import: %v", err)
			}
			<-written
			p.run()
			p.visible(p.heads[user].Position)
			if report := p.verified(); report.Events != 1 || report.Rows != 3 {
				t.Errorf("%+v", report)
			}
			if _, err := Import(t.Context(), p.db, quiet, bytes.NewReader(text)); err == nil {
				t.Error("a user who is there was imported")
			}
		})
	}
}

// There is one import, rebuild or the like at a time.
func TestImportIsMaintenance(t *testing.T) {
	t.Parallel()
	text := export(t, 2)
	p := writer(t, newDB(t))
	_, err := Import(t.Context(), p.db, quiet, disturbing(text, func() {
		if _, err := Rebuild(t.Context(), p.db, "", nil); !errors.Is(err, ErrMaintenance) {
			t.Errorf("a rebuild beside it: %v", err)
		}
		if _, err := Import(t.Context(), p.db, quiet, bytes.NewReader(text)); !errors.Is(err, ErrMaintenance) {
			t.Errorf("an import beside it: %v", err)
		}
	}))
	if err != nil {
		t.Error(err)
	}
	p.verified()
}

// An import that ends in the middle keeps nothing.
func TestImportThatFailsKeepsNothing(t *testing.T) {
	t.Parallel()
	text := export(t, 400)
	p := writer(t, newDB(t))
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := Import(ctx, p.db, quiet, disturbing(text, cancel)); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	d := disturbing(text, nil)
	d.disturb = func() { d.Reader.Reset(append([]byte("{}\n"), bytes.Repeat([]byte("x"), 100)...)) }
	if _, err := Import(t.Context(), p.db, quiet, d); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("another export than was checked: %v", err)
	}
	p.exec(`ALTER TABLE {schema}.tasks ADD CONSTRAINT no_renamed CHECK (body NOT LIKE '%renamed%')`)
	if _, err := Import(t.Context(), p.db, quiet, bytes.NewReader(text)); err == nil {
		t.Error("the read model refuses a row, the import does not")
	}
	if report := p.verified(); report.Events != 0 || report.Rows != 0 {
		t.Errorf("kept: %+v", report)
	}
}
