package auth

import (
	"testing"
	"time"
)

func TestWhatIsLeftOfACredential(t *testing.T) {
	t.Parallel()
	caller := Caller{Expires: testNow}
	for _, test := range []struct{ after, left time.Duration }{
		{-time.Minute, time.Minute},
		{-time.Nanosecond, time.Nanosecond},
		{0, 30 * time.Second},
		{10 * time.Second, 20 * time.Second},
		{30 * time.Second, 0},
	} {
		if left := caller.Left(testNow.Add(test.after)); left != test.left {
			t.Errorf("%v after the end: %v left, want %v", test.after, left, test.left)
		}
	}
}
