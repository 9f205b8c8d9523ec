package main

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"taskledger/httpapi/auth"
	"taskledger/migrations/testdb"
)

// A thousand streams cost less than 100 MB and no database connection each, and all of them hear what happens.
func TestAThousandStreams(t *testing.T) {
	t.Parallel()
	const users, each = 200, 5
	url := testdb.URL(t)
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	s := startServer(t, "DATABASE_URL="+url, "BETTER_AUTH_SECRET="+serveSecret)
	write := func(title string) {
		var group errgroup.Group
		group.SetLimit(8)
		for u := range users {
			group.Go(func() error {
				status, _, err := s.call(fmt.Sprint("u", u), "POST", "/api/tasks", `{"title":"`+title+`"}`)
				if err == nil && status != 201 {
					err = fmt.Errorf("a write: %d", status)
				}
				return err
			})
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	write("before")
	before, known := s.resident()
	client := &http.Client{Transport: &http.Transport{}} // connections of their own
	defer client.CloseIdleConnections()
	var streams [users * each]*bufio.Scanner
	var group errgroup.Group
	group.SetLimit(8)
	for i := range streams {
		group.Go(func() error {
			token, err := auth.SignToken([]byte(serveSecret), fmt.Sprint("u", i%users), "", "", time.Now(), time.Hour)
			if err != nil {
				return err
			}
			req, err := http.NewRequestWithContext(t.Context(), "GET", s.base+"/api/events", nil)
			if err != nil {
				return err
			}
			req.Header.Set("Authorization", "Bearer "+token)
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = resp.Body.Close() })
			if resp.StatusCode != 200 {
				return fmt.Errorf("stream %d: %d", i, resp.StatusCode)
			}
			streams[i] = bufio.NewScanner(resp.Body)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	write("heard")
	for i, lines := range streams {
		for heard := false; !heard; heard = strings.Contains(lines.Text(), `"title":"heard"`) {
			if !lines.Scan() {
				t.Fatalf("stream %d ends: %v", i, lines.Err())
			}
		}
	}
	after, _ := s.resident()
	var connections int
	err = pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid()`).Scan(&connections)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf(
		"%d streams: %.1f MB more than %.1f MB before, %d database connections",
		len(streams),
		after-before,
		before,
		connections,
	)
	if known && after-before >= 100 {
		t.Errorf("%d streams take %.1f MB", len(streams), after-before)
	}
	if connections >= 100 {
		t.Errorf("%d database connections", connections)
	}
}

// resident is how much memory the server has, in MB; known where the system tells it, and not where the race detector
// takes most of it.
func (s *served) resident() (megabytes float64, known bool) {
	s.t.Helper()
	build, _ := debug.ReadBuildInfo()
	raced := build != nil && slices.Contains(build.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
	if runtime.GOOS != "linux" || raced {
		return 0, false
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(data))[1])
	if err != nil {
		s.t.Fatal(err)
	}
	return float64(pages) * float64(os.Getpagesize()) / (1 << 20), true
}
