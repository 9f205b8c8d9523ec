package command

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"

	"taskledger/events"
)

const (
	// optimisticAttempts is how often a command is decided before it asks to be alone, because another process was first.
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
	// Stored is called after each append, before its command is answered, with the position of the last event. It must not block.
	Stored func(user string, position int64)
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
}

// NewHandler returns a Handler; it does no I/O.
func NewHandler(cfg Config) *Handler {
	return &Handler{cfg: cfg, lanes: lanes{busy: map[string]*lane{}}, streams: events.NewRecent[*stream](cfg.CacheBytes)}
}

// Request says who asks, and under which conditions.
type Request struct {
	UserID    string
	RequestID string
	Match     Match
	// Key makes the same request, sent again, have its effect once and the same answer; empty = none.
	Key string
}

// Result is what a command left behind.
type Result struct {
	Task events.Task // as it is after the command; Task.DeletedAt is set after a deletion
	Seq  int64       // the user's seq after the command
	// Replayed: the command was carried out before, under the same key.
	Replayed bool
}

// Do carries out one command and answers when its events are durable. A command that changes nothing stores nothing. Errors:
// ErrNotFound, *PreconditionError, *QuotaError, ErrKeyReused, ErrContended, events.ErrClosed, *events.FoldError for a stream that this
// program can't read; after any other error the outcome is unknown.
func (h *Handler) Do(ctx context.Context, req Request, cmd Command) (Result, error) {
	a := &attempt{Handler: h, req: req, cmd: cmd, from: h.cfg.Log.DB(), submit: h.cfg.Log.Submit}
	if req.Key != "" {
		var err error
		if a.print, err = fingerprint(cmd, req.Match); err != nil {
			return Result{}, err
		}
		// Before the lane, so that retries of what was done long ago hold nobody up.
		if before, err := replay(ctx, a.from, req, a.print); err != nil || before != nil {
			return answer(before, err)
		}
	}
	result, err := a.optimistic(ctx)
	if errors.Is(err, events.ErrConflict) {
		result, err = a.alone(context.WithoutCancel(ctx))
	}
	if err == nil && a.stored > 0 {
		h.cfg.Stored(req.UserID, a.stored)
	}
	return result, err
}

func answer(result *Result, err error) (Result, error) {
	if err != nil {
		return Result{}, err
	}
	return *result, nil
}

// attempt is one command on its way.
type attempt struct {
	*Handler
	req    Request
	cmd    Command
	print  []byte
	from   events.Querier
	submit func(context.Context, *events.Commit, func(error)) error
	stored int64 // position of the last event that was appended
}

// optimistic decides on what is known, and again on what is there as long as others were first. ErrConflict: they always were.
func (a *attempt) optimistic(ctx context.Context) (result Result, err error) {
	for n := range optimisticAttempts {
		if result, err = a.inLane(ctx, n > 0); !errors.Is(err, events.ErrConflict) {
			return result, err
		}
		if err := backOff(ctx, n); err != nil {
			return Result{}, err
		}
	}
	return Result{}, err
}

// inLane decides in the user's lane, and leaves it to wait for what was decided: the next one is decided meanwhile.
func (a *attempt) inLane(ctx context.Context, again bool) (Result, error) {
	release, waited, err := a.lanes.take(ctx, a.req.UserID)
	if err != nil {
		return Result{}, err
	}
	release = sync.OnceFunc(release)
	defer release()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	if a.req.Key != "" {
		// Who was here before, or is still on the way, may have carried out the same request.
		if before, err := a.replayBehind(ctx, waited || again); err != nil || before != nil {
			return answer(before, err)
		}
	}
	if again {
		return a.once(ctx, func() {}) // others write the stream too: what is decided behind this one would have to be decided again
	}
	return a.once(ctx, release)
}

// replayBehind looks for the same request when there was somebody it could be behind.
func (a *attempt) replayBehind(ctx context.Context, somebody bool) (*Result, error) {
	if s, ok := a.streams.Get(a.req.UserID); ok && s.onTheWay() {
		somebody = true
		if err := s.await(ctx); err != nil {
			return nil, err
		}
	}
	if !somebody {
		return nil, nil
	}
	return replay(ctx, a.from, a.req, a.print)
}

// alone decides and appends while nobody else can append.
func (a *attempt) alone(ctx context.Context) (result Result, err error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	release, _, err := a.lanes.take(ctx, a.req.UserID)
	if err != nil {
		return Result{}, err
	}
	defer release()
	err = a.cfg.Log.Exclusively(ctx, func(log *events.Exclusive) error {
		a.from, a.submit = log, log.Submit
		a.streams.Drop(a.req.UserID)
		before, err := replay(ctx, log, a.req, a.print)
		if err == nil && before == nil {
			result, err = a.once(ctx, func() {})
			return err
		}
		result, err = answer(before, err)
		return err
	})
	if err != nil {
		a.streams.Drop(a.req.UserID) // it may hold what was not stored
		result = Result{}
	}
	if errors.Is(err, events.ErrConflict) {
		err = errors.Join(ErrContended, err)
	}
	return result, err
}

// once decides once and appends what comes of it. Neither a no nor a "nothing to do" is said without a look at the log: what is
// remembered may be old, and then no conflict would tell.
func (a *attempt) once(ctx context.Context, release func()) (Result, error) {
	s, loaded, err := a.stream(ctx)
	if err != nil {
		return Result{}, err
	}
	c, result, err := a.decide(s)
	if c == nil && !loaded {
		current, lookErr := a.current(ctx, s)
		if lookErr != nil {
			return Result{}, lookErr
		}
		if !current {
			if s, err = a.load(ctx); err != nil {
				return Result{}, err
			}
		}
		c, result, err = a.decide(s)
	}
	if c != nil {
		return a.commit(ctx, s, c, release)
	}
	// The same request may have been carried out elsewhere since: what now stands in its way is then its own effect.
	if before, replayErr := replay(ctx, a.from, a.req, a.print); replayErr != nil || before != nil {
		return answer(before, replayErr)
	}
	if err == nil {
		err = a.durable(ctx)
	}
	return result, err
}

// durable waits until what is there is durable.
func (a *attempt) durable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	return events.Durable(ctx, a.from)
}

// decide decides on what is known of the stream: a commit or, when nothing is to be stored, the result or the reason why not.
func (a *attempt) decide(s *stream) (*commit, Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := a.cmd.decide(s, a.req.Match)
	if err != nil {
		return nil, Result{}, err
	}
	if len(d.events) == 0 {
		return nil, Result{Task: *s.tasks[d.task], Seq: s.head.Seq}, nil
	}
	return a.events(s, d)
}

// stream gives what is known of the user's stream: remembered, and so perhaps behind other processes, or loaded.
func (a *attempt) stream(ctx context.Context) (s *stream, loaded bool, err error) {
	s, ok := a.streams.Get(a.req.UserID)
	if id := a.cmd.about(); ok && id != nil {
		ok = s.knows(*id)
	}
	if ok {
		return s, false, nil
	}
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
	s, err := load(ctx, a.from, a.req.UserID, a.cfg.Quota, a.cmd.about(), math.MaxInt64)
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
	s.forget(a.cmd.about())
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
	return look.EventID == s.head.EventID && look.Generation == s.generation, err
}

// commit is what was decided: the events, the task as they leave it, and the seq of the last.
type commit struct {
	*events.Commit
	known *events.Task // as the stream knows it
	task  events.Task  // its times are not known yet
	seq   int64
}

// commit appends what was decided. The lane is left before the outcome is known.
func (a *attempt) commit(ctx context.Context, s *stream, c *commit, release func()) (Result, error) {
	outcome := make(chan error, 1)
	tail := make(chan struct{})
	err := a.submit(ctx, c.Commit, func(err error) {
		if err == nil {
			s.settle(c)
		}
		close(tail)
		outcome <- err
	})
	if err != nil {
		a.streams.Drop(a.req.UserID)
		return Result{}, err
	}
	s.follow(tail)
	a.remember(s)
	release()
	if err := <-outcome; err != nil {
		a.streams.Drop(a.req.UserID) // others were first, or whether it was stored is unknown
		return Result{}, err
	}
	a.stored = c.Events[len(c.Events)-1].Position
	return Result{Task: c.task, Seq: c.seq}, nil
}

// events makes the events of a decision, and folds them into what is known of the stream.
func (a *attempt) events(s *stream, d decision) (*commit, Result, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, Result{}, err
	}
	c := &commit{Commit: &events.Commit{
		Events:         make([]events.Event, len(d.events)),
		After:          s.head.EventID,
		Generation:     s.generation,
		IdempotencyKey: a.req.Key,
		Fingerprint:    a.print,
	}}
	for i, data := range d.events {
		eventID, err := uuid.NewV7()
		if err != nil {
			return nil, Result{}, err
		}
		c.Events[i] = events.Event{
			UserID:    a.req.UserID,
			Seq:       s.head.Seq + 1,
			TaskID:    d.task,
			EventID:   eventID,
			CommandID: id,
			Actor:     a.req.UserID,
			RequestID: a.req.RequestID,
			Data:      data,
		}
		if err := s.apply(&c.Events[i]); err != nil {
			return nil, Result{}, err
		}
	}
	c.known, c.seq = s.tasks[d.task], s.head.Seq
	c.task = *c.known
	return c, Result{}, nil
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
