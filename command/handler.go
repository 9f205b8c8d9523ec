package command

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"taskledger/events"
)

const (
	// optimisticAttempts is how often a command is decided before it asks to be alone, because another process was first.
	optimisticAttempts = 5
	// visibleTimeout bounds how long a write waits for the read model; after it the write answers anyway.
	visibleTimeout = time.Second
	// settleTimeout bounds what must not be cut short when the caller has gone: the append and what it needs.
	settleTimeout = 8 * time.Second
	// loadTimeout bounds what is read of the log for it: a PostgreSQL that went away without a word would never answer.
	loadTimeout = 5 * time.Second
)

// Config configures a Handler.
type Config struct {
	// Log is where events are appended to and loaded from.
	Log *events.Log
	// Visible returns when the read models show everything up to position, or when ctx ends.
	Visible func(ctx context.Context, position int64)
	// Quota is how many live tasks a user may have.
	Quota int
	// CacheBytes bounds the streams kept in memory.
	CacheBytes int
}

// Handler carries out commands. Its methods may be called from many goroutines at once.
type Handler struct {
	cfg   Config
	lanes lanes
	cache *cache
}

// NewHandler returns a Handler; it does no I/O.
func NewHandler(cfg Config) *Handler {
	return &Handler{cfg: cfg, lanes: lanes{busy: map[string]*lane{}}, cache: newCache(cfg.CacheBytes)}
}

// Request says who asks, and under which conditions.
type Request struct {
	UserID    string
	RequestID string
	Match     Match
	// Key makes the same request, sent again, have its effect once and the same answer; empty = none.
	Key string
	// Async answers when the events are stored, without waiting for the read models.
	Async bool
}

// Result is what a command left behind.
type Result struct {
	Task events.Task // as it is after the command; Task.DeletedAt is set after a deletion
	Seq  int64       // the user's seq after the command
	// Replayed: the command was carried out before, under the same key.
	Replayed bool
}

// Do carries out one command and answers when its events are stored and the read models show them, and all it was decided on, refused
// or not; when they lag more than a second it answers without. A command that changes nothing stores nothing. Errors: ErrNotFound, *PreconditionError,
// *QuotaError, ErrKeyReused, ErrContended, events.ErrClosed, *events.FoldError for a stream that this program can't read; after any other error the outcome is unknown.
func (h *Handler) Do(ctx context.Context, req Request, cmd Command) (Result, error) {
	result, position, err := h.settle(ctx, req, cmd)
	if position > 0 && !req.Async {
		visible, cancel := context.WithTimeout(ctx, visibleTimeout)
		defer cancel()
		h.cfg.Visible(visible, position)
	}
	return result, err
}

// Forget drops what is remembered of the user's stream: an operator has had an event of it passed over.
func (h *Handler) Forget(ctx context.Context, user string) {
	release, _, err := h.lanes.take(ctx, user)
	if err != nil {
		return // the process ends, and forgets everything
	}
	defer release()
	h.cache.drop(user)
}

// Head is the seq of the user's last event, 0 without any.
func (h *Handler) Head(ctx context.Context, user string) (int64, error) {
	return h.cfg.Log.Head(ctx, user)
}

// settle decides and appends in the user's lane. The position is that of the last event the outcome rests on, 0 when there is none.
func (h *Handler) settle(ctx context.Context, req Request, cmd Command) (Result, int64, error) {
	print, err := fingerprint(cmd, req.Match)
	if err != nil {
		return Result{}, 0, err
	}
	// Before the lane, so that retries of what was done long ago hold nobody up.
	if result, position, found, err := h.replay(ctx, h.cfg.Log, req, print); err != nil || found {
		return result, position, err
	}
	release, waited, err := h.lanes.take(ctx, req.UserID)
	if err != nil {
		return Result{}, 0, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	for attempt := range optimisticAttempts {
		if waited || attempt > 0 {
			// Who was in the lane, or first, may have carried out the same request.
			if result, position, found, err := h.replay(ctx, h.cfg.Log, req, print); err != nil || found {
				return result, position, err
			}
		}
		result, position, err := h.attempt(ctx, h.cfg.Log, req, cmd, print)
		if !lost(err) {
			return result, position, err
		}
		if err := backOff(ctx, attempt); err != nil {
			return Result{}, 0, err
		}
	}
	return h.attemptAlone(ctx, req, cmd, print)
}

// lost tells whether another writer was first.
func lost(err error) bool {
	return errors.Is(err, events.ErrWrongSeq) || errors.Is(err, events.ErrKeyUsed)
}

// attemptAlone decides and appends while nobody else can append.
func (h *Handler) attemptAlone(ctx context.Context, req Request, cmd Command, print []byte) (result Result, position int64, err error) {
	err = h.cfg.Log.Exclusively(ctx, func(log *events.Exclusive) (err error) {
		var found bool
		if result, position, found, err = h.replay(ctx, log, req, print); err != nil || found {
			return err
		}
		s, fresh, err := h.stream(ctx, log, req.UserID)
		if err == nil && !fresh {
			err = h.refresh(ctx, log, req.UserID, s)
		}
		if err != nil {
			return err
		}
		result, position, err = h.attempt(ctx, log, req, cmd, print)
		return err
	})
	if err != nil {
		h.cache.drop(req.UserID) // it may hold what was not stored
	}
	if lost(err) {
		err = errors.Join(ErrContended, err)
	}
	return result, position, err
}

// eventLog is the log, or the log while nobody else can append.
type eventLog interface {
	Load(ctx context.Context, user string, after int64, visit func(events.Event) error) error
	LoadTask(ctx context.Context, user string, task uuid.UUID, through int64, visit func(events.Event) error) error
	FindKey(ctx context.Context, user, key string) (*events.KeyUse, error)
	Append(ctx context.Context, events []events.Event) error
}

// attempt decides once on what the log holds and appends what comes of it, unless that was done before.
func (h *Handler) attempt(ctx context.Context, log eventLog, req Request, cmd Command, print []byte) (Result, int64, error) {
	s, fresh, err := h.stream(ctx, log, req.UserID)
	if err != nil {
		return Result{}, 0, err
	}
	d, err := cmd.decide(s, req.Match)
	if (err != nil || len(d.events) == 0) && !fresh {
		// Nothing will be appended, so the primary key won't tell that the cached stream is old: look.
		if err := h.refresh(ctx, log, req.UserID, s); err != nil {
			return Result{}, 0, err
		}
		d, err = cmd.decide(s, req.Match)
	}
	if err == nil && len(d.events) > 0 {
		return h.append(ctx, log, req, s, d, print)
	}
	// The same request may have been carried out elsewhere since: what now stands in its way is then its own effect.
	if result, position, found, replayErr := h.replay(ctx, log, req, print); replayErr != nil || found {
		return result, position, replayErr
	}
	if err != nil {
		return Result{}, s.at, err
	}
	return Result{Task: s.tasks[d.task], Seq: s.head}, s.at, nil
}

// stream gives the user's stream: from the cache, which may be behind other processes, or fresh from the log.
func (h *Handler) stream(ctx context.Context, log eventLog, user string) (s *stream, fresh bool, err error) {
	if s, ok := h.cache.get(user); ok {
		return s, false, nil
	}
	s = newStream(h.cfg.Quota)
	return s, true, h.refresh(ctx, log, user, s)
}

// refresh folds in what the log has beyond s. A stream that could not be folded to its end is not kept.
func (h *Handler) refresh(ctx context.Context, log eventLog, user string, s *stream) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	if err := log.Load(ctx, user, s.head, s.apply); err != nil {
		h.cache.drop(user)
		return err
	}
	h.cache.put(user, s)
	return nil
}

func (h *Handler) append(ctx context.Context, log eventLog, req Request, s *stream, d decision, print []byte) (Result, int64, error) {
	batch, err := h.events(req, s, d)
	if err != nil {
		return Result{}, 0, err
	}
	if req.Key != "" {
		batch[0].IdempotencyKey, batch[0].Fingerprint = req.Key, print
	}
	if err := log.Append(ctx, batch); err != nil {
		if lost(err) {
			return Result{}, 0, errors.Join(err, h.refresh(ctx, log, req.UserID, s))
		}
		h.cache.drop(req.UserID) // whether it was stored is unknown
		return Result{}, 0, err
	}
	for _, e := range batch {
		if err := s.apply(e); err != nil {
			h.cache.drop(req.UserID)
			return Result{}, 0, err
		}
	}
	h.cache.put(req.UserID, s)
	return Result{Task: s.tasks[d.task], Seq: s.head}, batch[len(batch)-1].Position, nil
}

func (h *Handler) events(req Request, s *stream, d decision) ([]events.Event, error) {
	commandID, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	batch := make([]events.Event, len(d.events))
	for i, data := range d.events {
		id, err := uuid.NewV7()
		if err != nil {
			return nil, err
		}
		batch[i] = events.Event{
			UserID:    req.UserID,
			Seq:       s.head + int64(i) + 1,
			TaskID:    d.task,
			EventID:   id,
			CommandID: commandID,
			Actor:     req.UserID,
			RequestID: req.RequestID,
			Data:      data,
		}
	}
	return batch, nil
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
