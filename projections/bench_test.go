package projections

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/google/uuid"

	"taskledger/events"
)

// What a batch of new tasks costs the projection, in this process and in PostgreSQL.
func BenchmarkBatch(b *testing.B) {
	for _, size := range []int{1, 100} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			p := writer(b, newDB(b))
			f := newFollower(newReadModel(), Name, p.db, slog.New(slog.DiscardHandler), nil)
			at := int64(0)
			for b.Loop() {
				b.StopTimer()
				for n := range size {
					p.append(
						fmt.Sprint("some-user-of-the-service-", n%32),
						uuid.Must(uuid.NewV7()),
						events.TaskCreated{Title: "Made by a benchmark"},
					)
				}
				batch, err := events.Read(b.Context(), p.db, at, size)
				if err != nil {
					b.Fatal(err)
				}
				at = batch.To
				b.StartTimer()
				if err := f.apply(b.Context(), &events.Delivery{Batch: batch}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*size), "µs/event")
		})
	}
}
