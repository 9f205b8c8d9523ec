package command

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"taskledger/events"
)

const (
	// optimisticAttempts is how often a command is decided before it asks to be alone, because another process was
	// first.
	optimisticAttempts = 5
	// settleTimeout bounds what must not be cut short when the caller has gone: the append and what it needs.
	settleTimeout = 8 * time.Second
	// loadTimeout bounds what is read for it: a PostgreSQL that went away without a word would never answer.
	loadTimeout = 5 * time.Second
	// rememberedTasks bounds the tasks of one user that are kept in memory.
	rememberedTasks = 64
)

// Config configures a Handler. All of it is needed.
type Config struct {
	// Log is where events are appended to.
	Log *events.Log
	// Stored is called after each append, before its command is answered, with the task of each step as that left it,
	// which nobody changes any more. The commits of a user come in their order. It must not block.
	Stored func(*events.Commit, []events.Task)
	// Quota is how many live tasks a user may have.
	Quota int
	// CacheBytes bounds what is kept of streams in memory.
	CacheBytes int
}

// Handler carries out commands. Its methods may be called from many goroutines at once.
type Handler struct {
	cfg     Config
	lanes   lanes
	streams *events.Recent[*stream] // each is used in its user's lane only
	metrics metrics
}

// NewHandler returns a Handler; it does no I/O.
func NewHandler(cfg Config) *Handler {
	streams := events.NewRecent[*stream](cfg.CacheBytes)
	return &Handler{
		cfg:     cfg,
		lanes:   lanes{busy: map[string]*lane{}},
		streams: streams,
		metrics: newMetrics(streams.Bytes),
	}
}

// Request says who asks, and under which conditions.
type Request struct {
	UserID    string
	RequestID string
	Actor     string // who acts for the user; empty = the user
	Match     Match
	// Key makes the same request, sent again, have its effect once and the same answer; empty = none.
	Key string
}

func (r Request) actor() string { return cmp.Or(r.Actor, r.UserID) }

// Result is what a command left behind.
type Result struct {
	Task events.Task // as it is after the command; Task.DeletedAt is set after a deletion
	Seq  int64       // the user's seq after the command
	// Replayed: the command was carried out before, under the same key.
	Replayed bool
}

// BatchResult is what several commands left behind.
type BatchResult struct {
	Tasks    []events.Task // as each of them left its task; not to be changed
	Seq      int64
	Replayed bool
}

// Do carries out one command and answers when its events are durable. A command that changes nothing stores nothing.
// Errors: ErrNotFound, ErrLive, ErrNotThen, *PreconditionError, *QuotaError, ErrKeyReused, ErrContended,
// events.ErrClosed, *events.FoldError for a stream that this program can't read; after any other error the outcome is
// unknown.
func (h *Handler) Do(ctx context.Context, req Request, cmd Command) (Result, error) {
	a := h.attempt(req, Step{cmd, req.Match})
	o, err := a.do(ctx)
	if err != nil {
		return Result{}, err
	}
	return Result{Task: o.tasks[0], Seq: o.seq, Replayed: o.replayed}, nil
}

// DoAll carries out several commands, each on what those before it left, all of them or none: their events are appended
// together. Request.Match is not looked at. The error of one that cannot be carried out is a *StepError.
func (h *Handler) DoAll(ctx context.Context, req Request, steps []Step) (BatchResult, error) {
	a := h.attempt(req, steps...)
	a.several = true
	o, err := a.do(ctx)
	if err != nil {
		return BatchResult{}, err
	}
	return BatchResult{Tasks: o.tasks, Seq: o.seq, Replayed: o.replayed}, nil
}

func (h *Handler) attempt(req Request, steps ...Step) *attempt {
	a := &attempt{Handler: h, req: req, steps: steps, from: h.cfg.Log.DB(), submit: h.cfg.Log.Submit}
	a.stored = func(c *commit) { h.cfg.Stored(c.Commit, c.outcome().tasks) }
	for _, step := range steps {
		if id := step.Command.about(); id != nil {
			a.about = append(a.about, *id)
		}
	}
	return a
}

// attempt is a request on its way: one command, or several.
type attempt struct {
	*Handler
	req     Request
	steps   []Step
	several bool // also if it is a list of one
	about   []uuid.UUID
	print   []byte
	from    events.Querier
	submit  func(context.Context, *events.Commit, func(error)) error
	stored  func(*commit) // told of what was appended
	until   time.Time     // when what waits for the database is cut short
}

// outcome is what was carried out: the task of each step as it left it.
type outcome struct {
	tasks    []events.Task
	seq      int64
	replayed bool
}

func (a *attempt) do(ctx context.Context) (o *outcome, err error) {
	if a.req.Key != "" {
		if a.print, err = fingerprint(a.steps, a.several); err != nil {
			return nil, err
		}
		// Before the lane, so that retries of what was done long ago hold nobody up.
		if before, err := a.replay(ctx, a.from); err != nil || before != nil {
			return before, err
		}
	}
	if revert, ok := a.steps[0].Command.(RevertTask); ok && !a.several {
		if a.steps[0].Command, err = revert.recall(ctx, a.from, a.req.UserID); err != nil {
			return nil, err
		}
	}
	o, err = a.optimistic(ctx)
	if errors.Is(err, events.ErrConflict) {
		a.metrics.alone.Inc()
		o, err = a.alone(context.WithoutCancel(ctx))
	}
	return o, err
}

// recall finds the task as it was. What was never changes, so it is good whatever happens meanwhile.
func (c RevertTask) recall(ctx context.Context, from events.Querier, user string) (RevertTask, error) {
	tasks, end, err := asOf(ctx, from, user, []moment{{c.ID, c.Version}})
	if err == nil && end >= c.Version {
		c.then = &tasks[0]
	}
	return c, err
}

// optimistic decides on what is known, and again on what is there as long as others were first. ErrConflict: they
// always were.
func (a *attempt) optimistic(ctx context.Context) (o *outcome, err error) {
	for n := range optimisticAttempts {
		if n > 0 {
			a.metrics.retries.Inc()
		}
		if o, err = a.inLane(ctx, n > 0); !errors.Is(err, events.ErrConflict) {
			return o, err
		}
		if err := backOff(ctx, n); err != nil {
			return nil, err
		}
	}
	return nil, err
}

// inTime bounds a wait. Most commands wait for nothing but the append, and need no timer.
func (a *attempt) inTime(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithDeadline(ctx, a.until)
}

// inLane decides in the user's lane, and leaves it to wait for what was decided: the next one is decided meanwhile.
func (a *attempt) inLane(ctx context.Context, again bool) (*outcome, error) {
	release, waited, err := a.lanes.take(ctx, a.req.UserID)
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, a.until = context.WithoutCancel(ctx), time.Now().Add(settleTimeout)
	if a.req.Key != "" {
		// Who was here before, or is still on the way, may have carried out the same request.
		if before, err := a.replayBehind(ctx, waited || again); err != nil || before != nil {
			return before, err
		}
	}
	if again {
		// others write the stream too: what is decided behind this one would have to be decided again
		return a.once(ctx, func() {})
	}
	return a.once(ctx, release)
}

// replayBehind looks for the same request when there was somebody it could be behind.
func (a *attempt) replayBehind(ctx context.Context, somebody bool) (*outcome, error) {
	s, known := a.streams.Get(a.req.UserID)
	known = known && s.onTheWay()
	if !somebody && !known {
		return nil, nil
	}
	ctx, cancel := a.inTime(ctx)
	defer cancel()
	if known {
		if err := s.await(ctx); err != nil {
			return nil, err
		}
	}
	return a.replay(ctx, a.from)
}

// alone decides and appends while nobody else can append.
func (a *attempt) alone(ctx context.Context) (o *outcome, err error) {
	a.until = time.Now().Add(settleTimeout)
	ctx, cancel := a.inTime(ctx)
	defer cancel()
	release, _, err := a.lanes.take(ctx, a.req.UserID)
	if err != nil {
		return nil, err
	}
	defer release()
	tell, appended := a.stored, (*commit)(nil)
	a.stored = func(c *commit) { appended = c } // it is stored when Exclusively returns
	err = a.cfg.Log.Exclusively(ctx, func(log *events.Exclusive) (err error) {
		a.from, a.submit = log, log.Submit
		a.streams.Drop(a.req.UserID)
		if o, err = a.replay(ctx, log); err != nil || o != nil {
			return err
		}
		o, err = a.once(ctx, func() {})
		return err
	})
	if err != nil {
		a.streams.Drop(a.req.UserID) // it may hold what was not stored
		o = nil
	} else if appended != nil {
		tell(appended)
	}
	if errors.Is(err, events.ErrConflict) {
		err = errors.Join(ErrContended, err)
	}
	return o, err
}

// once decides once and appends what comes of it. Neither a no nor a "nothing to do" is said without a look at the log:
// what is remembered may be old, and then no conflict would tell.
func (a *attempt) once(ctx context.Context, release func()) (*outcome, error) {
	s, loaded, err := a.stream(ctx)
	if err != nil {
		return nil, err
	}
	c, o, err := a.decide(s)
	if c != nil {
		return a.commit(ctx, s, c, release)
	}
	ctx, cancel := a.inTime(ctx)
	defer cancel()
	if !loaded {
		current, lookErr := a.current(ctx, s)
		if lookErr != nil {
			return nil, lookErr
		}
		if !current {
			if s, err = a.load(ctx); err != nil {
				return nil, err
			}
		}
		c, o, err = a.decide(s)
	}
	if c != nil {
		return a.commit(ctx, s, c, release)
	}
	// The same request may have been carried out elsewhere since: what now stands in its way is then its own effect.
	if before, replayErr := a.replay(ctx, a.from); replayErr != nil || before != nil {
		return before, replayErr
	}
	if err == nil {
		err = a.durable(ctx)
	}
	return o, err
}

// durable waits until what is there is durable.
func (a *attempt) durable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	return events.Durable(ctx, a.from)
}

// decide decides on what is known of the stream: a commit or, when nothing is to be stored, the outcome or the reason
// why not.
func (a *attempt) decide(s *stream) (c *commit, o *outcome, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !a.several {
		c, err = a.decideAll(s)
	} else {
		err = s.try(func(trial *stream) (err error) {
			c, err = a.decideAll(trial)
			return err
		})
	}
	if err != nil || len(c.Events) > 0 {
		return c, nil, err
	}
	return nil, c.outcome(), nil
}

// decideAll decides on each step, and folds its events into what is known of the stream.
func (a *attempt) decideAll(s *stream) (*commit, error) {
	c := &commit{
		Commit: &events.Commit{
			After: s.head.EventID, Generation: s.generation, IdempotencyKey: a.req.Key, Until: a.until,
		},
		results: make([]result, 0, len(a.steps)),
	}
	made := make([]decision, 0, len(a.steps))
	for i, step := range a.steps {
		d, err := step.Command.decide(s, step.Match)
		if err == nil {
			err = a.apply(s, c, d)
		}
		if err != nil && a.several {
			err = &StepError{Index: i, Err: err}
		}
		if err != nil {
			return nil, err
		}
		made = append(made, d)
	}
	c.seq = s.head.Seq
	c.Fingerprint = layout(a.print, made, a.several)
	return c, nil
}

// apply makes the events of a decision, and folds them into what is known of the stream.
func (a *attempt) apply(s *stream, c *commit, d decision) error {
	command, err := c.command()
	if err != nil {
		return err
	}
	for _, data := range d.events {
		id, err := uuid.NewV7()
		if err != nil {
			return err
		}
		c.Events = append(c.Events, events.Event{
			UserID:    a.req.UserID,
			Seq:       s.head.Seq + 1,
			TaskID:    d.task,
			EventID:   id,
			CommandID: command,
			Actor:     a.req.actor(),
			RequestID: a.req.RequestID,
			Data:      data,
		})
		if err := s.apply(&c.Events[len(c.Events)-1]); err != nil {
			return err
		}
	}
	c.results = append(c.results, result{known: s.tasks[d.task], task: *s.tasks[d.task]})
	return nil
}

// stream gives what is known of the user's stream: remembered, and so perhaps behind other processes, or loaded.
func (a *attempt) stream(ctx context.Context) (s *stream, loaded bool, err error) {
	s, ok := a.streams.Get(a.req.UserID)
	if ok && s.knows(a.about) && !(a.several && s.onTheWay()) {
		return s, false, nil
	}
	ctx, cancel := a.inTime(ctx)
	defer cancel()
	if s != nil { // what is on the way must be there to be loaded
		if err := s.await(ctx); err != nil {
			return nil, false, err
		}
	}
	s, err = a.load(ctx)
	return s, true, err
}

// load loads the stream, and remembers it with what was remembered of the same state.
func (a *attempt) load(ctx context.Context) (*stream, error) {
	s, err := load(ctx, a.from, a.req.UserID, a.cfg.Quota, a.about)
	if err != nil {
		a.streams.Drop(a.req.UserID)
		return nil, err
	}
	if old, ok := a.streams.Get(a.req.UserID); ok {
		s.adopt(old)
	}
	a.remember(s)
	return s, nil
}

func (a *attempt) remember(s *stream) {
	s.mu.Lock()
	s.forget(a.about)
	bytes := s.bytes
	s.mu.Unlock()
	a.streams.Put(a.req.UserID, s, bytes)
}

// current tells whether the stream still ends where it did, when nothing is on the way any more.
func (a *attempt) current(ctx context.Context, s *stream) (bool, error) {
	if err := s.await(ctx); err != nil {
		return false, err
	}
	look, err := a.cfg.Log.Head(ctx, a.req.UserID)
	s.mu.Lock()
	defer s.mu.Unlock()
	return look.EventID == s.head.EventID && look.Generation == s.userGeneration, err
}

// commit is what was decided: the events, the task of each step, and the seq of the last event.
type commit struct {
	*events.Commit
	results []result
	seq     int64
	left    *outcome // nil = not asked for yet
}

// result is a task as a step leaves it, whose times are not known yet.
type result struct {
	known *events.Task // as the stream knows it, which may be later
	task  events.Task
}

// command is the id that all events of the commit share.
func (c *commit) command() (uuid.UUID, error) {
	if len(c.Events) > 0 {
		return c.Events[0].CommandID, nil
	}
	return uuid.NewV7()
}

// outcome is what the commit has left behind. It is asked for when the times of its tasks are known.
func (c *commit) outcome() *outcome {
	if c.left == nil {
		c.left = &outcome{tasks: make([]events.Task, len(c.results)), seq: c.seq}
		for i := range c.results {
			c.left.tasks[i] = c.results[i].task
		}
	}
	return c.left
}

// commit appends what was decided. The lane is left before the outcome is known.
func (a *attempt) commit(ctx context.Context, s *stream, c *commit, release func()) (*outcome, error) {
	outcome := make(chan error, 1)
	tail := make(chan struct{})
	err := a.submit(ctx, c.Commit, func(err error) {
		if err == nil {
			s.settle(c)
			a.stored(c)
		}
		close(tail)
		outcome <- err
	})
	if err != nil {
		a.streams.Drop(a.req.UserID)
		return nil, err
	}
	s.follow(tail)
	a.remember(s)
	release()
	if err := <-outcome; err != nil {
		a.streams.Drop(a.req.UserID) // others were first, or whether it was stored is unknown
		return nil, err
	}
	return c.outcome(), nil
}

// backOff waits a little, longer with each attempt and never the same: two processes must not meet again and again.
func backOff(ctx context.Context, attempt int) error {
	limit := time.Millisecond << min(attempt, 5)
	timer := time.NewTimer(rand.N(limit))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
