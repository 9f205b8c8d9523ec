package main

import (
	"context"
	"time"
)

// lookEvery is how often this program looks at what cannot tell it.
const lookEvery = 20 * time.Millisecond

// until looks from time to time whether something is so, until it is or cannot be known or ctx ends.
func until(ctx context.Context, so func() (bool, error)) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if ok, err := so(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// waitUntil waits for t, or the end of ctx.
func waitUntil(ctx context.Context, t time.Time) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Until(t)):
	}
}
