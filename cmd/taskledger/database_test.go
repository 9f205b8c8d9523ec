package main

import (
	"net"
	"testing"

	"taskledger/migrations/testdb"
)

// A host that does not answer is passed by for the next one of the URL.
func TestAHostThatDoesNotAnswerIsPassedBy(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	url := parseURL(t, testdb.URL(t))
	url.Host = silent.Addr().String() + "," + url.Host
	s := startServer(t, "DATABASE_URL="+url.String(), "BETTER_AUTH_SECRET="+serveSecret)
	s.await(201, func() (int, error) {
		status, _, err := s.call("u", "POST", "/api/tasks", `{"title":"a"}`)
		return status, err
	})
	s.must(200, "u", "GET", "/api/tasks", "")
}
