package command

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
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
	a := &attempt{Handler: h, req: req, cmd: cmd, from: h.cfg.Log.DB(), append: h.cfg.Log.Append}
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
	release, waited, err := h.lanes.take(ctx, req.UserID)
	if err != nil {
		return Result{}, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	result, err := a.optimistic(ctx, waited)
	if errors.Is(err, events.ErrConflict) {
		result, err = a.alone(ctx)
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

// attempt is one command on its way, in its user's lane.
type attempt struct {
	*Handler
	req    Request
	cmd    Command
	print  []byte
	from   events.Querier
	append func(context.Context, *events.Commit) error
	stored int64 // position of the last event that was appended
}

// optimistic decides on what is known, and again on what is there as long as others were first. ErrConflict: they always were.
func (a *attempt) optimistic(ctx context.Context, waited bool) (result Result, err error) {
	for n := range optimisticAttempts {
		if waited || n > 0 {
			// Who was in the lane, or first, may have carried out the same request.
			if before, err := replay(ctx, a.from, a.req, a.print); err != nil || before != nil {
				return answer(before, err)
			}
		}
		if result, err = a.once(ctx); !errors.Is(err, events.ErrConflict) {
			return result, err
		}
		if err := backOff(ctx, n); err != nil {
			return Result{}, err
		}
	}
	return Result{}, err
}

// alone decides and appends while nobody else can append.
func (a *attempt) alone(ctx context.Context) (result Result, err error) {
	err = a.cfg.Log.Exclusively(ctx, func(log *events.Exclusive) error {
		a.from, a.append = log, log.Append
		a.streams.Drop(a.req.UserID)
		before, err := replay(ctx, log, a.req, a.print)
		if err == nil && before == nil {
			result, err = a.once(ctx)
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
func (a *attempt) once(ctx context.Context) (Result, error) {
	s, loaded, err := a.stream(ctx)
	if err != nil {
		return Result{}, err
	}
	d, err := a.cmd.decide(s, a.req.Match)
	if (err != nil || len(d.events) == 0) && !loaded {
		current, lookErr := a.current(ctx, s)
		if lookErr != nil {
			return Result{}, lookErr
		}
		if !current {
			if s, err = a.load(ctx); err != nil {
				return Result{}, err
			}
			d, err = a.cmd.decide(s, a.req.Match)
		}
	}
	if err == nil && len(d.events) > 0 {
		return a.commit(ctx, s, d)
	}
	// The same request may have been carried out elsewhere since: what now stands in its way is then its own effect.
	if before, replayErr := replay(ctx, a.from, a.req, a.print); replayErr != nil || before != nil {
		return answer(before, replayErr)
	}
	if err != nil {
		return Result{}, err
	}
	return Result{Task: s.tasks[d.task], Seq: s.head.Seq}, nil
}

// stream gives what is known of the user's stream: remembered, and so perhaps behind other processes, or loaded.
func (a *attempt) stream(ctx context.Context) (s *stream, loaded bool, err error) {
	s, ok := a.streams.Get(a.req.UserID)
	if id := a.cmd.about(); ok && id != nil {
		_, ok = s.tasks[*id]
	}
	if ok {
		return s, false, nil
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
	if old, ok := a.streams.Get(a.req.UserID); ok && old.head == s.head && old.generation == s.generation {
		for id, t := range old.tasks {
			s.tasks[id] = t
		}
	}
	a.remember(s)
	return s, nil
}

func (a *attempt) remember(s *stream) {
	for id := range s.tasks {
		if len(s.tasks) <= rememberedTasks {
			break
		}
		if about := a.cmd.about(); about == nil || id != *about {
			delete(s.tasks, id)
		}
	}
	a.streams.Put(a.req.UserID, s, s.bytes())
}

// current tells whether the stream still ends where it did.
func (a *attempt) current(ctx context.Context, s *stream) (bool, error) {
	look, err := a.cfg.Log.Head(ctx, a.req.UserID)
	return look.Head == s.head && look.Generation == s.generation, err
}

// commit appends what was decided, and remembers the stream as it is then.
func (a *attempt) commit(ctx context.Context, s *stream, d decision) (Result, error) {
	c, err := a.events(s, d)
	if err != nil {
		return Result{}, err
	}
	if err := a.append(ctx, c); err != nil {
		a.streams.Drop(a.req.UserID) // others were first, or whether it was stored is unknown
		return Result{}, err
	}
	for _, e := range c.Events {
		if err := s.apply(e); err != nil {
			a.streams.Drop(a.req.UserID)
			return Result{}, err
		}
	}
	task := s.tasks[d.task]
	a.remember(s)
	a.stored = s.head.Position
	return Result{Task: task, Seq: s.head.Seq}, nil
}

func (a *attempt) events(s *stream, d decision) (*events.Commit, error) {
	command, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	c := &events.Commit{
		Events:         make([]events.Event, len(d.events)),
		After:          s.head.EventID,
		Generation:     s.generation,
		IdempotencyKey: a.req.Key,
		Fingerprint:    a.print,
	}
	for i, data := range d.events {
		id, err := uuid.NewV7()
		if err != nil {
			return nil, err
		}
		c.Events[i] = events.Event{
			UserID:    a.req.UserID,
			Seq:       s.head.Seq + int64(i) + 1,
			TaskID:    d.task,
			EventID:   id,
			CommandID: command,
			Actor:     a.req.UserID,
			RequestID: a.req.RequestID,
			Data:      data,
		}
	}
	return c, nil
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
