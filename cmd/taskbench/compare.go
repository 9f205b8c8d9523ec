package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// turn is what one side did of a workload in one round.
type turn struct {
	total *tally
	rate  float64 // requests a second
	used  usage
}

// cell is a workload at a number of connections. It has a turn of each side for every round.
type cell struct {
	workload    workload
	connections int
	rounds      [][2]turn
}

// runRival measures the product beside the rival.
func (o *options) runRival(ctx context.Context, stdout, progress io.Writer) (err error) {
	if o.Profile != "" {
		if err := os.MkdirAll(o.Profile, 0o755); err != nil {
			return err
		}
	}
	s, err := o.openStand(ctx, progress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	cells, stopped := o.compare(ctx, s, progress)
	report := s.report(o, cells)
	if err := o.printComparison(stdout, report); err != nil {
		return err
	}
	if stopped != nil {
		return stopped
	}
	if report.broken() {
		return errBroken
	}
	return nil
}

// compare returns what it has, also with an error. A round goes through all workloads, so that what disturbs the
// machine for a while is in one round of many workloads and not in all rounds of one.
func (o *options) compare(ctx context.Context, s *stand, progress io.Writer) ([]*cell, error) {
	cells := o.cells()
	if err := o.prepare(ctx, s, progress); err != nil {
		return nil, withHint(interrupted(ctx, err))
	}
	for round := 1; round <= o.Rounds; round++ {
		for _, c := range cells {
			turns, err := o.round(ctx, s, c, round)
			if err != nil {
				return cells, interrupted(ctx, err)
			}
			c.rounds = append(c.rounds, turns)
			fmt.Fprintf(progress, "round %d, %s, %d connections: %s %.0f/s, %s %.0f/s, ratio %.2f\n",
				round, c.workload.name, c.connections, s.sides[0].name, turns[0].rate, s.sides[1].name, turns[1].rate,
				ratio(turns))
		}
	}
	return cells, nil
}

func (o *options) cells() []*cell {
	var cells []*cell
	for _, w := range o.chosen() {
		for _, n := range o.Connections {
			if w.measuredWith(n) {
				cells = append(cells, &cell{workload: w, connections: n})
			}
		}
	}
	return cells
}

func (o *options) prepare(ctx context.Context, s *stand, progress io.Writer) error {
	fmt.Fprintf(progress, "seeding %d users with %d tasks each, on both\n", o.Users, o.Tasks)
	for _, side := range s.sides {
		var err error
		if side.users, err = o.seededUsers(ctx, side); err != nil {
			return fmt.Errorf("%s: %w", side.name, err)
		}
	}
	return s.analyze(ctx)
}

func (o *options) seededUsers(ctx context.Context, on *side) ([]*user, error) {
	users, err := o.makeUsers()
	if err != nil {
		return nil, err
	}
	return users, o.seed(ctx, on.url, users)
}

func (o *options) round(ctx context.Context, s *stand, c *cell, round int) (turns [2]turn, err error) {
	for i, side := range s.sides {
		users := side.users
		if c.workload.fresh {
			if users, err = o.seededUsers(ctx, side); err != nil {
				return turns, fmt.Errorf("%s: %w", side.name, err)
			}
		}
		s.settle(ctx)
		profile := ""
		if o.Profile != "" && side.admin != "" {
			profile = fmt.Sprintf("%s-%s-c%d-round%d.pprof", side.name, c.workload.name, c.connections, round)
		}
		turns[i], err = o.turn(ctx, s, side, profile, job{
			url: side.url, users: users, connections: c.connections, step: c.workload.newStep(o),
		})
		if err != nil {
			return turns, fmt.Errorf("%s: %w", side.name, err)
		}
	}
	return turns, nil
}

// turn does a job, and measures what it costs. A profile that is named is taken meanwhile.
func (o *options) turn(ctx context.Context, s *stand, of *side, profile string, j job) (turn, error) {
	j.when = o.nextWindow()
	j.pace = j.when.closedLoop
	var (
		meanwhile         sync.WaitGroup
		before            usage
		unknown, profiled error
	)
	meanwhile.Go(func() {
		waitUntil(ctx, j.when.from)
		before, unknown = s.used(of)
	})
	if profile != "" {
		meanwhile.Go(func() {
			waitUntil(ctx, j.when.from)
			profiled = o.saveProfile(ctx, of, profile)
		})
	}
	total := o.load(ctx, j)
	after, gone := s.used(of)
	meanwhile.Wait()
	if ctx.Err() != nil {
		return turn{}, context.Cause(ctx)
	}
	t := turn{total: total, rate: total.rate(j.when.from)}
	if unknown == nil && gone == nil {
		t.used = usage{server: after.server - before.server, postgres: after.postgres - before.postgres}
	}
	return t, errors.Join(of.program.alive(), profiled)
}

// saveProfile has the server profile itself for as long as a turn takes, in whole seconds.
func (o *options) saveProfile(ctx context.Context, of *side, name string) error {
	seconds := max(1, int(o.Duration.Seconds()))
	c := newConn(of.admin, o.RequestTimeout+time.Duration(seconds)*time.Second)
	defer c.close()
	op := operation{http.MethodGet, fmt.Sprintf("/debug/pprof/profile?seconds=%d", seconds), "", http.StatusOK}
	if err := c.do(ctx, &user{}, op, ""); err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	return os.WriteFile(filepath.Join(o.Profile, name), c.body.Bytes(), 0o644)
}

func ratio(turns [2]turn) float64 {
	if turns[1].rate == 0 {
		return 0
	}
	return turns[0].rate / turns[1].rate
}
