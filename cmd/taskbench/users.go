package main

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
)

const seedConnections = 16

// user is somebody the load acts as; tasks are the ids of the tasks seeded for them.
type user struct {
	token string
	tasks []string
}

// makeUsers gives every run users that nobody had before, so that no run starts at another run's quota.
func (o *options) makeUsers() ([]*user, error) {
	if o.Token != "" {
		return []*user{{token: o.Token}}, nil
	}
	users := make([]*user, o.Users)
	run := uuid.NewString()[:8]
	for i := range users {
		token, err := o.sign(fmt.Sprintf("taskbench-%s-%d", run, i))
		if err != nil {
			return nil, err
		}
		users[i] = &user{token: token}
	}
	return users, nil
}

func (o *options) sign(subject string) (string, error) {
	now := time.Now()
	return jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.RegisteredClaims{
		Subject:   subject,
		IssuedAt:  jwt.NewNumericDate(now),
		ExpiresAt: jwt.NewNumericDate(now.Add(o.Deadline + time.Minute)),
	}).SignedString([]byte(o.secret))
}

// seed creates --tasks tasks for each user. The first answer that is not 201 ends it.
func (o *options) seed(parent context.Context, url string, users []*user) error {
	group, ctx := errgroup.WithContext(parent)
	jobs := make(chan *user)
	group.Go(func() error {
		defer close(jobs)
		return o.sendSeedJobs(ctx, users, jobs)
	})
	var mu sync.Mutex
	for range seedConnections {
		group.Go(func() error { return o.seedWorker(ctx, url, jobs, &mu) })
	}
	err := group.Wait()
	if parent.Err() != nil {
		return context.Cause(parent)
	}
	return err
}

func (o *options) sendSeedJobs(ctx context.Context, users []*user, jobs chan<- *user) error {
	for range o.Tasks {
		for _, u := range users {
			select {
			case jobs <- u:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

func (o *options) seedWorker(ctx context.Context, url string, jobs <-chan *user, mu *sync.Mutex) error {
	c := newConn(url, o.RequestTimeout)
	defer c.close()
	for u := range jobs {
		got, err := createTask(ctx, c, u)
		if err != nil {
			return fmt.Errorf("seed: %w", err)
		}
		mu.Lock()
		u.tasks = append(u.tasks, got.ID)
		mu.Unlock()
	}
	return nil
}

// task is what this program looks at of a task.
type task struct {
	ID      string `json:"id"`
	Title   string `json:"title"`
	Version int64  `json:"version"`
}

func createTask(ctx context.Context, c *conn, u *user) (task, error) {
	return sendForTask(ctx, c, u, operations["create"], "")
}

func sendForTask(ctx context.Context, c *conn, u *user, op operation, id string) (task, error) {
	var got task
	if err := c.do(ctx, u, op, id); err != nil {
		return got, err
	}
	if err := json.Unmarshal(c.body.Bytes(), &got); err != nil || got.ID == "" {
		return got, &badAnswer{status: http.StatusOK, code: "not_a_task"}
	}
	return got, nil
}
