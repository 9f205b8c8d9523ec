package command

import (
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/go-json-experiment/json"

	"taskledger/events"
)

// fingerprint tells requests apart: the same command under the same condition has the same, whatever its spelling in JSON was.
func fingerprint(cmd Command, match Match) ([]byte, error) {
	data, err := json.Marshal(struct {
		Name    string
		Command Command
		Match   Match
	}{cmd.name(), cmd, match}, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("fingerprint: %w", err)
	}
	sum := sha256.Sum256(data)
	return sum[:], nil
}

// replay finds what an earlier command with the same key left behind, and answers with that; found is false when there was none. It
// needs nothing but the log, and so holds for ever, also where the first answer never left.
func (h *Handler) replay(ctx context.Context, log eventLog, req Request, print []byte) (result Result, position int64, found bool, err error) {
	if req.Key == "" {
		return Result{}, 0, false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	first, err := log.FindKey(ctx, req.UserID, req.Key)
	if err != nil || first == nil {
		return Result{}, 0, false, err
	}
	if string(first.Fingerprint) != string(print) {
		return Result{}, 0, false, ErrKeyReused
	}
	result = Result{Seq: first.LastSeq, Replayed: true}
	err = log.LoadTask(ctx, req.UserID, first.TaskID, first.LastSeq, func(e events.Event) (err error) {
		result.Task, err = events.Fold(result.Task, e)
		return err
	})
	return result, first.LastPosition, true, err
}
