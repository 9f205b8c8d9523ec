package httpapi

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/labstack/echo/v4"

	"taskledger/command"
	"taskledger/httpapi/auth"
)

const (
	batchPath    = "/api/batch"
	maxBatchBody = 256 << 10
	maxBatch     = 100 // commands
)

// batch carries out several commands, all or none.
func (s *Server) batch(c echo.Context, caller auth.Caller) error {
	var in input
	body, err := in.object(c.Request())
	if err != nil {
		return err
	}
	steps, first, err := in.steps(body)
	if err != nil {
		return err
	}
	req := in.request(c, caller)
	if err := in.problem(); err != nil {
		var p *problem
		if errors.As(err, &p) && first >= 0 {
			p.Index = &first
		}
		return err
	}
	result, err := s.commands.DoAll(c.Request().Context(), req, steps)
	if err != nil {
		return err
	}
	answerWrite(c, result.Seq, result.Replayed)
	answer := []byte(`{"results":[`)
	for i, t := range result.Tasks {
		if i > 0 {
			answer = append(answer, ',')
		}
		if t.DeletedAt != nil {
			answer = append(answer, `null`...)
		} else {
			answer = t.AppendJSON(answer)
		}
	}
	return sendBody(c, http.StatusOK, append(answer, `]}`...))
}

// steps reads the commands of a batch, and finds the first that is wrong; -1 when none is.
func (in *input) steps(body object) (steps []command.Step, first int, err error) {
	first = -1
	value, present := body["commands"]
	switch {
	case body == nil:
		return nil, first, nil
	case !present:
		in.member("commands", "required", "is required")
		return nil, first, nil
	case value.Kind() != '[':
		in.member("commands", "invalid_type", "must be an array")
		return nil, first, nil
	}
	commands, err := elements(value)
	if err != nil {
		return nil, first, err
	}
	if len(commands) < 1 || len(commands) > maxBatch {
		in.member("commands", "out_of_range", fmt.Sprintf("must have 1 to %d commands", maxBatch))
		return nil, first, nil
	}
	for i, c := range commands {
		wrong := len(in.wrong)
		steps = append(steps, in.step("commands/"+strconv.Itoa(i), c))
		if first < 0 && len(in.wrong) > wrong {
			first = i
		}
	}
	in.at = ""
	return steps, first, nil
}

// elements are those of a JSON array, which was found to be JSON before.
func elements(array jsontext.Value) (out []jsontext.Value, err error) {
	dec := jsontext.NewDecoder(bytes.NewReader(array), jsontext.AllowInvalidUTF8(true))
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	for dec.PeekKind() != ']' {
		value, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		out = append(out, value.Clone())
	}
	return out, nil
}

// members are those of a value that was found to be JSON before; it is noted when the value is no object.
func (in *input) members(path string, value jsontext.Value) object {
	o, err := readMembers(jsontext.NewDecoder(bytes.NewReader(value), jsontext.AllowInvalidUTF8(true)), value)
	if err != nil || o == nil {
		in.add(atMember(path, "invalid_type", "must be an object"))
	}
	return o
}

// The commands of a batch.
const (
	opCreate   = "create"
	opUpdate   = "update"
	opComplete = "complete"
	opReopen   = "reopen"
	opDelete   = "delete"
	opRestore  = "restore"
)

var ops = []string{opCreate, opUpdate, opComplete, opReopen, opDelete, opRestore}

// step reads one command, at a path of the body.
func (in *input) step(path string, value jsontext.Value) (step command.Step) {
	o := in.members(path, value)
	if o == nil {
		return step
	}
	in.at = path + "/"
	op, ok := in.text(o, "op")
	if _, present := o["op"]; !present || ok && !slices.Contains(ops, op) {
		in.member("op", "invalid_value", "must be one of "+strings.Join(ops, ", "))
	}
	id := in.stepID(o, op)
	if _, present := o["if_match"]; present {
		step.Match = command.Match{Present: true, Versions: []int64{in.seq(o, "if_match")}}
	}
	var data object
	if value, present := o["data"]; present && (op == opCreate || op == opUpdate) {
		data = in.members(path+"/data", value)
	}
	in.at = path + "/data/"
	switch op {
	case opCreate:
		step.Command = in.stepCreate(id, data)
	case opUpdate:
		step.Command = command.UpdateTask{
			ID:          id,
			Title:       in.title(data),
			Description: in.description(data),
			Completed:   in.boolean(data, "is_completed"),
		}
	case opComplete:
		step.Command = command.CompleteTask{ID: id}
	case opReopen:
		step.Command = command.ReopenTask{ID: id}
	case opDelete:
		step.Command = command.DeleteTask{ID: id}
	case opRestore:
		step.Command = command.RestoreTask{ID: id}
	}
	return step
}

// stepID reads the id of the task; that of a new one may be missing, and is nil then.
func (in *input) stepID(o object, op string) uuid.UUID {
	text, ok := in.text(o, "id")
	if !ok {
		if _, present := o["id"]; !present && op != opCreate && slices.Contains(ops, op) {
			in.member("id", "required", "is required")
		}
		return uuid.Nil
	}
	id, err := uuid.Parse(text)
	if err != nil || id == uuid.Nil {
		in.member("id", "invalid_uuid", "must be a UUID")
	}
	return id
}

// stepCreate reads a new task. A client may choose its id, so that later commands of the batch can name it.
func (in *input) stepCreate(id uuid.UUID, data object) command.CreateTask {
	create := in.create(data)
	if id != uuid.Nil {
		create.ID, create.Chosen = id, &id
	}
	return create
}
