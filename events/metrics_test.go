package events

import (
	"testing"
	"time"
)

// A lag is known from what was heard, and ends with what the database says: also when that is less than was heard,
// as after a failover.
func TestTheLagThatIsKnown(t *testing.T) {
	t.Parallel()
	at := func(minute int) time.Time { return time.Unix(int64(60*minute), 0) }
	var k known
	for _, step := range []struct {
		what   string
		do     func()
		events int64
		oldest time.Time
	}{
		{"nothing", func() {}, 0, time.Time{}},
		{"all is applied", func() { k.stands(5, 5, at(1)) }, 0, time.Time{}},
		{"what is applied is heard of", func() { k.heard(5, at(1)) }, 0, time.Time{}},
		{"one more", func() { k.heard(6, at(2)) }, 1, at(2)},
		{"and more", func() { k.heard(9, at(3)) }, 4, at(2)},
		{"the first is applied", func() { k.stands(6, k.head, at(3)) }, 3, at(3)},
		{"an old word", func() { k.heard(7, at(4)) }, 3, at(3)},
		{"a failover", func() { k.stands(2, 4, at(1)) }, 2, at(1)},
		{"all of it", func() { k.stands(4, 4, at(2)) }, 0, time.Time{}},
	} {
		step.do()
		if got := k.head - k.applied; got != step.events || !k.oldest.Equal(step.oldest) {
			t.Errorf("%s: %d events since %v, want %d since %v", step.what, got, k.oldest, step.events, step.oldest)
		}
	}
}
