package events

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
)

// subscribe begins a subscription of the read model's, for a test that handles the messages.
func subscribe(t *testing.T, l *Log) (*Subscriber, <-chan *message.Message) {
	t.Helper()
	s := l.NewSubscriber(SubscriberConfig{
		Projection: "tasks",
		Linger:     func() time.Duration { return time.Millisecond },
		MaxEvents:  100,
		Confirm:    func(Checkpoint) {},
		Report:     func(error) {},
	})
	messages, err := s.Subscribe(t.Context(), Topic)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // it has no error
	return s, messages
}

func receive(t *testing.T, messages <-chan *message.Message) (*message.Message, *Delivery) {
	t.Helper()
	select {
	case m := <-messages:
		d, err := DeliveryOf(m)
		if err != nil {
			t.Fatal(err)
		}
		return m, d
	case <-time.After(time.Minute):
		t.Fatal("there is no message")
		return nil, nil
	}
}

// What was handed over in memory and is lost in a failover is not handed out, even where what is appended next joins on
// to it.
func TestWhatWasLostIsNotHandedOut(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	l := openLog(t, db)
	_, messages := subscribe(t, l)
	kept := store(t, l, facts("u", 1, uuid.Nil, TaskCreated{Title: "kept"}))
	m, _ := receive(t, messages)
	lost := store(t, l, facts("v", 1, uuid.Nil, TaskCreated{Title: "lost"}))
	exec(t, db, `ALTER TABLE {schema}.task_events DISABLE TRIGGER USER`)
	exec(t, db, `DELETE FROM {schema}.task_events WHERE user_id = 'v'`)
	m.Nack() // the database was not there
	m, d := receive(t, messages)
	if len(d.Events) != 1 || d.To != kept.Events[0].Position {
		t.Fatalf("handed out through %d: %+v", d.To, d.Events)
	}
	next := store(t, l, facts("w", 1, uuid.Nil, TaskCreated{Title: "next"}))
	if next.Events[0].Position != lost.Events[0].Position+1 {
		t.Fatal("the next event does not join on to what was lost")
	}
	exec(t, db, `UPDATE {schema}.checkpoints SET position = $1`, d.To)
	m.Ack()
	if _, d = receive(t, messages); len(d.Events) != 1 || d.Events[0].UserID != "w" {
		t.Errorf("handed out behind %d: %+v", d.From, d.Events)
	}
}

// Who has much to catch up with is given every event once and in order, whatever was read before it was known what
// becomes of the batch before: also when another process applies some of it, and while this one appends.
func TestABacklogIsHandedOutInOrder(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	l := openLog(t, db)
	exec(t, db, `
		INSERT INTO {schema}.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		SELECT 'u', n, gen_random_uuid(), 'TaskCreated', 1, '{"title": "a"}',
			gen_random_uuid(), gen_random_uuid(), 'u', 'r', clock_timestamp()
		FROM generate_series(1, 1050) n`)
	_, messages := subscribe(t, l)
	after, appended := uuid.Nil, int64(0)
	for at, n := int64(0), 0; at < 1060; n++ {
		m, d := receive(t, messages)
		if d.From != at || d.Events[0].Position != at+1 || d.To != at+int64(len(d.Events)) {
			t.Fatalf("%d events, %d to %d, behind %d, where %d was next",
				len(d.Events), d.Events[0].Position, d.To, d.From, at)
		}
		if want := int64(n / 3); d.Generation != want {
			t.Errorf("batch %d: generation %d, want %d", n, d.Generation, want)
		}
		if n%3 == 2 { // another process has applied this batch and half of the next one, and an operator was there
			at = d.To + 50
			exec(t, db, `UPDATE {schema}.checkpoints SET position = $1, generation = generation + 1`, at)
			m.Nack()
			continue
		}
		if appended < 10 {
			appended++
			c := facts("v", appended, after, TaskCreated{Title: "a"})
			c.Generation = d.Generation
			after = store(t, l, c).last()
		}
		at = d.To
		exec(t, db, `UPDATE {schema}.checkpoints SET position = $1`, at)
		m.Ack()
	}
}

// While nothing can be applied, appends are no reason to try again at once.
func TestTriesThatFailAreFew(t *testing.T) {
	t.Parallel()
	l := openLog(t, newDB(t))
	_, messages := subscribe(t, l)
	var tries atomic.Int64
	go func() {
		for m := range messages {
			tries.Add(1)
			m.Nack()
		}
	}()
	after, appended := uuid.Nil, int64(0)
	for begin := time.Now(); time.Since(begin) < time.Second; {
		appended++
		after = store(t, l, facts("u", appended, after, TaskCreated{Title: "a"})).last()
	}
	if n := tries.Load(); n > 40 {
		t.Errorf("%d tries beside %d appends in a second", n, appended)
	}
}

// However large events are, a batch is not: it ends with the event that fills it, and the rest follows.
func TestABatchIsBoundedByItsBytes(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	l := openLog(t, db)
	l.batchBytes = batchBytes >> 6 // or it would take seconds
	exec(t, db, `
		INSERT INTO {schema}.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		SELECT 'u', n, gen_random_uuid(), 'TaskCreated', 1,
			jsonb_build_object('title', repeat('x', CASE n WHEN 20 THEN 20 ELSE 3 END << 14)),
			gen_random_uuid(), gen_random_uuid(), 'u', 'r', clock_timestamp()
		FROM generate_series(1, 24) n`)
	want := []int{6, 6, 6, 2, 4} // 18/64 MiB three times, what the largest ends, what is left
	_, messages := subscribe(t, l)
	var got []int
	for at := int64(0); at < 24; {
		b, err := readBatch(t.Context(), db, at, 100, l.batchBytes)
		if err != nil {
			t.Fatal(err)
		}
		m, d := receive(t, messages)
		if d.From != at || d.To != b.To || len(d.Events) != len(b.Events) {
			t.Fatalf("the subscriber hands out %d events behind %d, Read gives %d behind %d",
				len(d.Events), d.From, len(b.Events), at)
		}
		got, at = append(got, len(b.Events)), b.To
		exec(t, db, `UPDATE {schema}.checkpoints SET position = $1`, d.To)
		m.Ack()
	}
	if !slices.Equal(got, want) {
		t.Errorf("batches of %d events, want %d", got, want)
	}
}
