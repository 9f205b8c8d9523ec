package command

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"taskledger/events"
)

// eraseAttempts is how often an erasure is tried when something else was appended under its key.
const eraseAttempts = 2

// Erase deletes all that the user ever did, and leaves one event as the proof. Result.Seq is the user's seq after it;
// Result has no Task. A user without events, or with none since an erasure, stays as they are.
func (h *Handler) Erase(ctx context.Context, req Request) (Result, error) {
	a := h.attempt(req)
	print, err := fingerprint([]Step{{Command: eraseUser{}}}, false)
	if err != nil {
		return Result{}, err
	}
	a.print = print
	release, _, err := h.lanes.take(ctx, req.UserID)
	if err != nil {
		return Result{}, err
	}
	defer release()
	ctx = context.WithoutCancel(ctx)
	for range eraseAttempts {
		if req.Key != "" {
			if u, err := a.find(ctx, a.from); err != nil || u != nil {
				return u.erased(), err
			}
		}
		var result Result
		if result, err = a.erase(ctx); !errors.Is(err, events.ErrConflict) {
			return result, err
		}
	}
	return Result{}, err
}

// erased is the answer to an erasure that was carried out before.
func (u *used) erased() Result {
	if u == nil {
		return Result{}
	}
	return Result{Seq: u.seqs[0], Replayed: true}
}

func (a *attempt) erase(ctx context.Context) (Result, error) {
	defer a.streams.Drop(a.req.UserID)
	if s, ok := a.streams.Get(a.req.UserID); ok {
		if err := s.await(ctx); err != nil {
			return Result{}, err
		}
	}
	ids := [2]uuid.UUID{}
	for i := range ids {
		var err error
		if ids[i], err = uuid.NewV7(); err != nil {
			return Result{}, err
		}
	}
	e := events.Event{
		UserID:    a.req.UserID,
		EventID:   ids[0],
		CommandID: ids[1],
		Actor:     a.req.actor(),
		RequestID: a.req.RequestID,
	}
	if err := a.cfg.Log.Erase(ctx, &e, a.req.Key, a.print); err != nil {
		return Result{}, err
	}
	if e.Position == 0 {
		look, err := a.cfg.Log.Head(ctx, a.req.UserID)
		return Result{Seq: look.Seq}, err
	}
	a.cfg.Stored(&events.Commit{Events: []events.Event{e}}, nil)
	return Result{Seq: e.Seq}, nil
}

// eraseUser is what an erasure is called in fingerprints.
type eraseUser struct{}

func (eraseUser) name() string                            { return "erase" }
func (eraseUser) about() *uuid.UUID                       { return nil }
func (eraseUser) decide(*stream, Match) (decision, error) { panic("an erasure is not decided") }
