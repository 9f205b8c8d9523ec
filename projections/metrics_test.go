package projections

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"taskledger/events"
)

// Who reads the metrics of a process sees that its projection is held up, how much waits and for how long, and that it
// goes on.
func TestMetricsTellOfAProjectionThatIsHeldUp(t *testing.T) {
	t.Parallel()
	p := writer(t, newDB(t))
	p.run()
	_, _, last := p.someHistory("u")
	p.visible(last)
	eventually(t, "no lag", func() bool { return p.metric("taskledger_projection_lag_events") == 0 })
	if p.metric("taskledger_projection_lag_seconds") != 0 || p.metric("taskledger_projection_failing") != 0 {
		t.Error("a lag of nothing")
	}
	p.exec(`ALTER TABLE {schema}.tasks RENAME TO away`)
	held := time.Now()
	p.append("v", uuid.New(), events.TaskCreated{Title: "a"})
	last = p.append("v", uuid.New(), events.TaskCreated{Title: "b"})
	eventually(t, "the metrics tell", func() bool {
		return p.metric("taskledger_projection_failing") == 1 && p.metric("taskledger_projection_lag_events") == 2 &&
			p.metric("taskledger_projection_lag_seconds") > 0.2
	})
	if lag := p.metric("taskledger_projection_lag_seconds"); lag > time.Since(held).Seconds() {
		t.Errorf("a lag of %v s after %v", lag, time.Since(held))
	}
	checked := p.metric("taskledger_projection_checked_timestamp_seconds")
	if age := time.Since(time.UnixMilli(int64(checked * 1000))); age < 0 || age > time.Minute {
		t.Errorf("checked %s ago", age)
	}
	p.exec(`ALTER TABLE {schema}.away RENAME TO tasks`)
	p.visible(last)
	eventually(t, "the metrics tell of the end", func() bool {
		return p.metric("taskledger_projection_failing") == 0 && p.metric("taskledger_projection_lag_events") == 0 &&
			p.metric("taskledger_projection_lag_seconds") == 0
	})
	if n := p.metric("taskledger_projection_delay_seconds"); n < 2 ||
		n != p.metric(
			"taskledger_projection_batch_events",
		) || n != p.metric("taskledger_projection_batch_duration_seconds") {
		t.Errorf("%v batches", n)
	}
}

// They tell how many users are parked as soon as one is, and of the end of it with the next event.
func TestMetricsTellOfParkedUsers(t *testing.T) {
	t.Parallel()
	p := writer(t, newDB(t))
	p.run()
	_, _, last := p.someHistory("u")
	p.visible(last)
	eventually(t, "nobody is parked", func() bool {
		return p.metric("taskledger_survey_timestamp_seconds") > 0 && p.metric("taskledger_parked_users") == 0
	})
	p.damage("u")
	p.visible(p.append("v", uuid.New(), events.TaskCreated{Title: "a"}))
	eventually(t, "one is parked", func() bool { return p.metric("taskledger_parked_users") == 1 })
	if n := p.metric("taskledger_projection_parked_total"); n != 1 {
		t.Errorf("%v were parked", n)
	}
	if _, err := SkipParked(t.Context(), p.db, "u"); err != nil {
		t.Fatal(err)
	}
	p.visible(p.append("v", uuid.New(), events.TaskCreated{Title: "b"}))
	eventually(t, "nobody is parked any more", func() bool { return p.metric("taskledger_parked_users") == 0 })
}
