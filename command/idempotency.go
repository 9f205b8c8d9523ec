package command

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"taskledger/events"
)

// maxCommandEvents is more events than any command has.
const maxCommandEvents = 1000

// named is a command in a fingerprint.
type named struct {
	Name    string
	Command Command
	Match   Match
}

// fingerprint tells requests apart: the same commands under the same conditions have the same, whatever their spelling
// in JSON was. It is stored, so it never changes: testdata has frozen samples.
func fingerprint(steps []Step, several bool) ([]byte, error) {
	all := make([]named, len(steps))
	for i, step := range steps {
		all[i] = named{step.Command.name(), step.Command, step.Match}
	}
	var what any = all
	if !several {
		what = all[0]
	}
	data, err := json.Marshal(what, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("fingerprint: %w", err)
	}
	sum := sha256.Sum256(data)
	return sum[:], nil
}

// layout is what is stored as the fingerprint: the request's, and how many events each of several commands came to, an
// octet each. By that the answer can be given again.
func layout(print []byte, d []decision, several bool) []byte {
	if !several || print == nil {
		return print
	}
	out := print[:sha256.Size:sha256.Size]
	for i := range d {
		out = append(out, byte(len(d[i].events)))
	}
	return out
}

// findKey finds the events of the command that an idempotency key was used for.
const findKey = `
	SELECT e.seq, e.task_id, f.request_fingerprint
	FROM {schema}.task_events f
	CROSS JOIN LATERAL (
		SELECT e.seq, e.task_id
		FROM {schema}.task_events e
		WHERE e.user_id = f.user_id AND e.seq BETWEEN f.seq AND f.seq + $3 AND e.command_id = f.command_id
	) e
	WHERE f.user_id = $1 AND f.idempotency_key = $2
	ORDER BY e.seq`

// used is what a key was used for.
type used struct {
	seqs  []int64
	tasks []uuid.UUID
	print []byte
}

// find finds what the request's key was used for; nil when it was not. ErrKeyReused: for another request.
func (a *attempt) find(ctx context.Context, from events.Querier) (*used, error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	var u used
	err := from.Query(ctx, findKey, []any{a.req.UserID, a.req.Key, maxCommandEvents}, func(rows pgx.Rows) error {
		for rows.Next() {
			var (
				seq  int64
				task uuid.UUID
			)
			if err := rows.Scan(&seq, &task, &u.print); err != nil {
				return err
			}
			u.seqs, u.tasks = append(u.seqs, seq), append(u.tasks, task)
		}
		return rows.Err()
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("find an idempotency key: %w", err)
	case len(u.seqs) == 0:
		return nil, nil
	case len(u.print) < sha256.Size || string(u.print[:sha256.Size]) != string(a.print):
		return nil, ErrKeyReused
	}
	return &u, nil
}

// replay answers with what an earlier request with the same key left behind; nil when there was none. It needs nothing
// but the log and what is derived of it, and so holds for ever, also where the first answer never left.
func (a *attempt) replay(ctx context.Context, from events.Querier) (*outcome, error) {
	if a.req.Key == "" {
		return nil, nil
	}
	u, err := a.find(ctx, from)
	if err != nil || u == nil {
		return nil, err
	}
	moments, err := a.moments(u)
	if err != nil {
		return nil, err
	}
	tasks, _, err := asOf(ctx, from, a.req.UserID, moments)
	if err == nil {
		err = a.durable(ctx)
	}
	if err != nil {
		return nil, err
	}
	return &outcome{tasks: tasks, seq: u.seqs[len(u.seqs)-1], replayed: true}, nil
}

// moments are what the answer tells: the task of each step as the step left it.
func (a *attempt) moments(u *used) ([]moment, error) {
	if !a.several {
		return []moment{{u.tasks[0], u.seqs[len(u.seqs)-1]}}, nil
	}
	counts := u.print[sha256.Size:]
	if len(counts) != len(a.steps) {
		return nil, errors.New("what is stored with an idempotency key does not fit its request")
	}
	moments := make([]moment, len(a.steps))
	through, done := u.seqs[0]-1, 0
	for i, step := range a.steps {
		first := done
		done += int(counts[i])
		if done > len(u.seqs) {
			return nil, errors.New("what is stored with an idempotency key does not fit its events")
		}
		if done > first {
			through = u.seqs[done-1]
		}
		if id := step.Command.about(); id != nil {
			moments[i] = moment{*id, through}
		} else {
			moments[i] = moment{u.tasks[first], through}
		}
	}
	return moments, nil
}
