package httpapi

import (
	"context"
	"crypto/md5"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"

	"taskledger/projections"
)

// longStream gives the user "long" a stream of so many events, on a thousand live tasks and five hundred deleted ones.
// What is rare in it is long ago.
func (s *service) longStream(n int) {
	s.t.Helper()
	s.exec(`
		INSERT INTO {schema}.task_events
			(user_id, seq, task_id, type, schema_version, data, event_id, command_id, actor, request_id, recorded_at)
		SELECT 'long', seq, md5('task ' || task)::uuid, type, 1, CASE type
				WHEN 'TaskCreated' THEN jsonb_build_object(
					'title', 'task ' || task, 'description', repeat('d', task % 200))
				WHEN 'TaskRenamed' THEN jsonb_build_object('title', 'task ' || task || ' as of ' || seq)
				ELSE '{}' END,
			gen_random_uuid(), gen_random_uuid(), 'long', 'r' || seq,
			timestamptz '2026-01-01 00:00Z' + seq * interval '1 minute'
		FROM (
			SELECT seq, CASE WHEN seq <= 1500 THEN seq WHEN seq <= 2000 THEN seq - 500 ELSE seq % 1000 + 1 END AS task,
				CASE WHEN seq <= 1500 THEN 'TaskCreated' WHEN seq <= 2000 THEN 'TaskDeleted'
				ELSE (ARRAY['TaskCompleted', 'TaskReopened', 'TaskRenamed'])[(seq / 1000 - 2) % 3 + 1] END AS type
			FROM generate_series(1, $1) seq
		) e
		ORDER BY seq`, n)
	if _, err := projections.Rebuild(context.Background(), s.ledger.DB(), "", nil); err != nil {
		s.t.Fatal(err)
	}
}

// BenchmarkLongStream reads what there is of a user with 100,000 events; the figures are of whole requests.
func BenchmarkLongStream(b *testing.B) {
	s := start(b)
	s.server.limits = newRateLimits(0, 0)
	s.longStream(100_000)
	type read struct{ name, path string }
	reads := []read{
		{
			"as_of=seq",
			"/api/tasks?as_of=%d",
		},
		{"as_of=seq, a page", "/api/tasks?as_of=%d&limit=20&sort=title&status=pending"},
		{"as_of=seq, search", "/api/tasks?as_of=%d&q=task"},
		{"as_of=time", "/api/tasks?as_of=%s"},
		{
			"sync",
			"/api/sync?since=%d",
		},
		{"trash", "/api/trash?limit=500&x=%d"},
		{"trash, next", "/api/trash?limit=3&x=%d"},
		{"link", "/api/ledger?seq=%d"},
	}
	for _, order := range []string{"asc", "desc"} {
		for _, filter := range []string{
			"", "&since=%d", "&until=%d", "&since=%d&until=%d", "&since=%s", "&until=%s", "&type=TaskCreated",
			"&type=TaskDeleted", "&type=TaskRenamed",
			"&type=TaskRestored", "&type=TaskCreated&since=2000", "&type=TaskCompleted&until=%d", "&task_id=" + "%u",
			"&task_id=%u&type=TaskRenamed", "&task_id=%u&since=%d",
			"&task_id=%u&type=TaskDeleted",
		} {
			reads = append(
				reads,
				read{"history " + order + filter, "/api/history?limit=500&x=%d&order=" + order + filter},
			)
		}
	}
	n := 0
	for _, r := range reads {
		b.Run(r.name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				n++
				seq := 2001 + n*7919%98_000
				c := call{method: "GET", path: fill(r.path, seq), user: "long"}
				began := time.Now()
				resp := s.send(s.token("long"), c.method, c.path, "", nil)
				took = append(took, time.Since(began))
				if resp.StatusCode != 200 {
					b.Fatalf("%s: %d", c.path, resp.StatusCode)
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[0].Microseconds())/1000, "ms/least")
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms/median")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// fill writes a seq, the time of it, or a task into a path.
func fill(path string, seq int) string {
	var out []byte
	for i := 0; i < len(path); i++ {
		if path[i] != '%' {
			out = append(out, path[i])
			continue
		}
		i++
		switch path[i] {
		case 'd':
			out = strconv.AppendInt(out, int64(seq), 10)
		case 's':
			out = time.Date(2026, 1, 1, 0, seq, 0, 0, time.UTC).AppendFormat(out, time.RFC3339)
		case 'u':
			out = fmt.Appendf(out, "%s", taskOf(seq%1000+1))
		}
	}
	return string(out)
}

// taskOf is the id of a task of the long stream.
func taskOf(n int) uuid.UUID { return uuid.UUID(md5.Sum(fmt.Appendf(nil, "task %d", n))) }

// BenchmarkEraseLongStream erases a user of 200,000 events, while another user writes and reads.
func BenchmarkEraseLongStream(b *testing.B) {
	var slowest time.Duration
	for b.Loop() {
		b.StopTimer()
		s := start(b).allow(1_000_000)
		s.server.limits = newRateLimits(0, 0)
		s.longStream(200_000)
		stop, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				began := time.Now()
				s.titled("other", strconv.Itoa(n))
				s.want(200, call{method: "GET", path: "/api/tasks?limit=5", user: "other"})
				slowest = max(slowest, time.Since(began))
			}
		}()
		b.StartTimer()
		s.erase("long")
		b.StopTimer()
		close(stop)
		<-ended
		if n := s.count(`user_id = 'long'`); n != 1 {
			b.Fatalf("%d events are left", n)
		}
		s.verified()
		b.StartTimer()
	}
	b.ReportMetric(float64(slowest.Milliseconds()), "ms/slowest-write-and-read-beside")
}
