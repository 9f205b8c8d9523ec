package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/labstack/echo/v4"

	"taskledger/command"
	"taskledger/events"
	"taskledger/httpapi/auth"
	"taskledger/query"
)

// problem is the one form of every error answer: RFC 9457, with a stable code for programs.
type problem struct {
	Type           string         `json:"type"`
	Title          string         `json:"title"`
	Status         int            `json:"status"`
	Code           string         `json:"code"`
	Detail         string         `json:"detail"`
	Message        string         `json:"message"` // repeats Detail: the client that exists reads it
	Errors         []inputProblem `json:"errors,omitempty"`
	CurrentVersion int64          `json:"current_version,omitzero"`
	Index          *int           `json:"index,omitzero"` // of the command of a batch
	RequestID      string         `json:"request_id"`

	header http.Header
	cause  error // for the log; never sent
}

// inputProblem is one thing wrong with a request: in its body, by JSON pointer (RFC 6901), or in a parameter of its
// path, query or header, by name.
type inputProblem struct {
	Pointer   *string `json:"pointer,omitzero"`
	Parameter string  `json:"parameter,omitzero"`
	Code      string  `json:"code"`
	Detail    string  `json:"detail"`
}

// Error implements error.
func (p *problem) Error() string { return p.Code + ": " + p.Detail }

func newProblem(status int, code, detail string) *problem {
	return &problem{Status: status, Code: code, Detail: detail, header: http.Header{}}
}

func (p *problem) with(name, value string) *problem {
	p.header.Set(name, value)
	return p
}

func (p *problem) because(err error) *problem {
	p.cause = err
	return p
}

func unavailable(cause error) *problem {
	return newProblem(http.StatusServiceUnavailable, "unavailable", "the service is not available now; try again").
		with("Retry-After", "1").because(cause)
}

// noTask is the same whyever: who asks for another's task must not learn that there is one.
func noTask() *problem {
	return newProblem(http.StatusNotFound, "not_found",
		"there is no such task: it was deleted, perhaps in another tab, or never was")
}

func noPath() *problem {
	return newProblem(http.StatusNotFound, "not_found", "there is no such path")
}

// invalid is the answer to a request that is well-formed but wrong; detail tells the first error of the list.
func invalid(wrong []inputProblem) *problem {
	p := newProblem(http.StatusUnprocessableEntity, "validation_error", wrong[0].describe())
	p.Errors = wrong
	return p
}

func (i inputProblem) describe() string {
	switch {
	case i.Parameter != "":
		return i.Parameter + ": " + i.Detail
	case *i.Pointer != "":
		return (*i.Pointer)[1:] + ": " + i.Detail
	}
	return i.Detail
}

// future is the answer to a parameter that names a moment which is still to come; other errors stay as they are.
func future(err error, parameter string) error {
	if errors.Is(err, query.ErrFuture) {
		return invalid([]inputProblem{{Parameter: parameter, Code: "out_of_range", Detail: "is past the last event"}})
	}
	return err
}

// problemOf is the one map from errors to answers.
func problemOf(err error) *problem {
	var (
		p            *problem
		refused      *auth.Error
		precondition *command.PreconditionError
		quota        *command.QuotaError
		step         *command.StepError
		framework    *echo.HTTPError
	)
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &refused):
		return authProblem(refused)
	case errors.As(err, &step):
		p := problemOf(step.Err)
		p.Index = &step.Index
		return p
	case errors.Is(err, command.ErrNotFound), errors.Is(err, query.ErrNotFound):
		return noTask()
	case errors.Is(err, command.ErrLive), errors.Is(err, command.ErrExists):
		return newProblem(http.StatusConflict, "version_conflict", err.Error())
	case errors.As(err, &precondition):
		p := newProblem(http.StatusPreconditionFailed, "precondition_failed", fmt.Sprintf("the task is at version %d: "+
			`it has changed, or a proxy has made its ETag weak (W/); take "version" from the body for If-Match`,
			precondition.Current))
		p.CurrentVersion = precondition.Current
		return p.with("ETag", etag(precondition.Current))
	case errors.Is(err, query.ErrNotYet):
		return newProblem(http.StatusServiceUnavailable, "not_yet_consistent", query.ErrNotYet.Error()+"; try again").
			with("Retry-After", "1")
	case errors.Is(err, command.ErrKeyReused):
		return newProblem(
			http.StatusUnprocessableEntity,
			"idempotency_key_reused",
			"the idempotency key was used for another request",
		)
	case errors.As(err, &quota):
		return newProblem(http.StatusUnprocessableEntity, "quota_exceeded", quota.Error())
	case errors.As(err, &framework):
		return frameworkProblem(framework)
	case isOutage(err):
		return unavailable(err)
	}
	return newProblem(http.StatusInternalServerError, "internal", "something went wrong on our side").because(err)
}

// authProblem tells a caller no more of why than what to do: the log knows the reason.
func authProblem(refused *auth.Error) *problem {
	switch refused.Reason {
	case auth.CrossSite:
		return newProblem(http.StatusForbidden, "forbidden", refused.Detail)
	case auth.NoCredentials:
		return newProblem(http.StatusUnauthorized, "unauthenticated", "credentials are needed").
			with("WWW-Authenticate", `Bearer`)
	}
	p := newProblem(http.StatusUnauthorized, "invalid_token", "the credentials are not valid")
	if refused.Reason == auth.Expired {
		p = newProblem(http.StatusUnauthorized, "token_expired", "the credentials have expired")
	}
	return p.with("WWW-Authenticate", `Bearer error="invalid_token"`)
}

func frameworkProblem(err *echo.HTTPError) *problem {
	switch err.Code {
	case http.StatusNotFound:
		return noPath()
	case http.StatusMethodNotAllowed:
		return newProblem(err.Code, "method_not_allowed", "the resource does not take this method")
	case http.StatusRequestEntityTooLarge:
		return newProblem(err.Code, "payload_too_large", "the body is too large")
	}
	return newProblem(http.StatusInternalServerError, "internal", "something went wrong on our side").because(err)
}

// outageClasses are the classes of SQLSTATE that mean "not now": connection exceptions, transactions that may not write
// or were ended, serialization and deadlock, insufficient resources, lock not available, operator intervention, system
// error, and a PostgreSQL that is at odds with itself.
var outageClasses = map[string]bool{
	"08": true,
	"25": true,
	"40": true,
	"53": true,
	"55": true,
	"57": true,
	"58": true,
	"XX": true,
}

// outageCodes are SQLSTATEs that mean so too: a privilege that was revoked; a schema or a table that is missing, as
// while a dump is restored.
var outageCodes = map[string]bool{"42501": true, "3F000": true, "42P01": true}

// isOutage tells a database that is away, or too slow, from a fault of the program.
func isOutage(err error) bool {
	var (
		network  net.Error
		connect  *pgconn.ConnectError
		unfolded *events.FoldError
		pgErr    *pgconn.PgError
	)
	if errors.As(err, &connect) { // whatever the reason: nobody could ask
		return true
	}
	if errors.As(err, &pgErr) {
		return outageClasses[pgErr.Code[:2]] || outageCodes[pgErr.Code]
	}
	for _, known := range []error{
		io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, context.DeadlineExceeded, context.Canceled, events.ErrClosed,
		events.ErrBroken,
		command.ErrContended,
	} {
		if errors.Is(err, known) {
			return true
		}
	}
	return errors.As(err, &network) || errors.As(err, &unfolded) || pgconn.SafeToRetry(err)
}

// safeCause is what may be logged of why a request failed.
func safeCause(p *problem) string {
	if p.cause == nil {
		return p.Detail
	}
	return events.Cause(p.cause)
}

// writeProblem sends a problem; a HEAD request gets its header only.
func writeProblem(w http.ResponseWriter, p *problem) {
	body := p.fill(w.Header())
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // the client may be gone; there is nobody left to tell
}

// fill completes the header of an answer, in which the request's id is, and returns its body.
func (p *problem) fill(header http.Header) []byte {
	p.Type, p.Title, p.Message = "about:blank", http.StatusText(p.Status), p.Detail
	p.RequestID = header.Get(echo.HeaderXRequestID)
	body, err := json.Marshal(p)
	if err != nil {
		panic(err) // only strings and numbers
	}
	maps.Copy(header, p.header)
	header.Set("Content-Type", "application/problem+json")
	header.Set("Content-Length", strconv.Itoa(len(body)))
	return body
}
