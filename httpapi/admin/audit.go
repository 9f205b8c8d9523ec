package admin

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"taskledger/query"
)

const (
	maxUsers   = 50 // on a page
	maxEntries = 50
	maxTasks   = 100

	maxID = 255 // bytes of a user's id

	verifyTimeout  = 2 * time.Minute
	maxDifferences = 100
)

func jsonOf(value any) ([]byte, error) { return json.Marshal(value) }

// readID reads a user's id, or its beginning, and answers if there can be none such.
func (s *Server) readID(w http.ResponseWriter, r *http.Request, id string) bool {
	if len(id) <= maxID && utf8.ValidString(id) && !strings.Contains(id, "\x00") {
		return true
	}
	s.fail(w, r, http.StatusUnprocessableEntity, "A user's id has at most 255 bytes, in UTF-8.")
	return false
}

type usersPage struct {
	Prefix string
	Found  []query.User
	Many   bool // more begin so
}

func (s *Server) users(w http.ResponseWriter, r *http.Request) {
	prefix := r.URL.Query().Get("q")
	if !s.readID(w, r, prefix) {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), pageTimeout)
	defer cancel()
	found, err := s.FindUsers(ctx, prefix, maxUsers+1)
	if err != nil {
		s.unavailable(w, r, err)
		return
	}
	p := usersPage{Prefix: prefix, Found: found}
	if len(found) > maxUsers {
		p.Found, p.Many = found[:maxUsers], true
	}
	s.render(w, r, http.StatusOK, "users", "Users", p)
}

// entry is a history entry.
type entry struct {
	Seq        int64              `json:"seq"`
	Type       string             `json:"type"`
	TaskID     *uuid.UUID         `json:"task_id"`
	RecordedAt time.Time          `json:"recorded_at"`
	Actor      string             `json:"actor"`
	RequestID  string             `json:"request_id"`
	Changes    map[string]*fromTo `json:"changes"`
	Hash       string             `json:"hash"`
	Rows       []change           `json:"-"`
}

type fromTo struct {
	From jsontext.Value `json:"from"`
	To   jsontext.Value `json:"to"`
}

// change is a row of the history: one member, from and to.
type change struct {
	Member   string
	From, To shown
}

// shown is a value of a task. A text is what a user wrote.
type shown struct {
	Value  string
	IsText bool
}

// task is a task of a list.
type task struct {
	ID          uuid.UUID `json:"id"`
	Title       string    `json:"title"`
	Description *string   `json:"description"`
	Completed   bool      `json:"is_completed"`
	CreatedAt   time.Time `json:"created_at"`
	UpdatedAt   time.Time `json:"updated_at"`
	Version     int64     `json:"version"`
}

// userPage shows one user: the list as it was at a seq, and the history.
type userPage struct {
	ID     string
	Head   int64 // the last seq that the read model shows
	Stale  bool
	Parked bool

	At    int64
	Event *entry // the one at At
	Tasks []task
	More  string // where the list goes on
	Began bool   // the list is shown from its beginning

	Task    string // the history of one task only
	Entries []entry
	Before  int64 // the history is shown from before this seq; 0 = from its end
	Older   int64 // the history goes on before this seq; 0 = not
}

// asked is what a request for a user's page asks for.
type asked struct {
	id     string
	at     *query.Moment
	task   *uuid.UUID
	before int64
	after  *query.Place // in the list
}

var errAsked = errors.New("not understood")

// readAsked reads the query of a user's page.
func readAsked(q url.Values) (a asked, err error) {
	a.id = q.Get("id")
	// A time wins: it is there only when somebody has typed one.
	if text := q.Get("time"); text != "" {
		at, err := parseTime(text)
		if err != nil {
			return a, err
		}
		a.at = &query.Moment{Time: at}
	} else if text := q.Get("at"); text != "" {
		seq, err := parseSeq(text)
		if err != nil {
			return a, err
		}
		a.at = &query.Moment{Seq: seq}
	}
	if text := q.Get("task"); text != "" {
		id, err := uuid.Parse(text)
		if err != nil {
			return a, errAsked
		}
		a.task = &id
	}
	if text := q.Get("before"); text != "" {
		if a.before, err = parseSeq(text); err != nil {
			return a, err
		}
	}
	if text := q.Get("from"); text != "" {
		if a.after, err = parsePlace(text); err != nil {
			return a, err
		}
	}
	return a, nil
}

func parseSeq(text string) (int64, error) {
	seq, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seq < 0 {
		return 0, errAsked
	}
	return seq, nil
}

// parseTime reads what a field for a date and time sends, as UTC, and RFC 3339.
func parseTime(text string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04"} {
		if at, err := time.Parse(layout, text); err == nil && 1970 <= at.Year() && at.Year() <= 9999 {
			return at, nil
		}
	}
	return time.Time{}, errAsked
}

// A place in the list is its time of creation and its id.
func placeText(t task) string { return t.CreatedAt.Format(time.RFC3339Nano) + "," + t.ID.String() }

func parsePlace(text string) (*query.Place, error) {
	at, id, _ := strings.Cut(text, ",")
	created, err := parseTime(at)
	if err != nil {
		return nil, err
	}
	parsed, err := uuid.Parse(id)
	if err != nil {
		return nil, errAsked
	}
	return &query.Place{Time: created, ID: parsed}, nil
}

func (s *Server) user(w http.ResponseWriter, r *http.Request) {
	a, err := readAsked(r.URL.Query())
	if err != nil {
		s.fail(w, r, http.StatusUnprocessableEntity, "This page was asked for in a way that it does not understand.")
		return
	}
	if a.id == "" {
		http.Redirect(w, r, "/users", http.StatusSeeOther)
		return
	}
	if !s.readID(w, r, a.id) {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), pageTimeout)
	defer cancel()
	p, err := s.userPage(ctx, a)
	switch {
	case errors.Is(err, query.ErrFuture):
		s.fail(w, r, http.StatusUnprocessableEntity, "That moment is still to come.")
	case err != nil:
		s.unavailable(w, r, err)
	default:
		s.render(w, r, http.StatusOK, "user", "User", p)
	}
}

func (s *Server) userPage(ctx context.Context, a asked) (userPage, error) {
	p := userPage{ID: a.id, Before: a.before, Began: a.after == nil}
	if a.task != nil {
		p.Task = a.task.String()
	}
	if err := s.readHistory(ctx, a, &p); err != nil {
		return p, err
	}
	if err := s.readMoment(ctx, a, &p); err != nil || p.At == 0 {
		return p, err
	}
	return p, s.readList(ctx, a, &p)
}

func (s *Server) readHistory(ctx context.Context, a asked, p *userPage) error {
	page := query.Page{Limit: maxEntries}
	if a.before > 0 {
		page.After = &query.Place{Seq: a.before}
	}
	answer, err := s.list(ctx, a.id, query.HistoryFilter{TaskID: a.task, Order: query.Descending}, page, &p.Entries)
	if err != nil {
		return err
	}
	p.Head, p.Stale = answer.Seq, answer.Stale
	if answer.Next != nil {
		p.Older = answer.Next.Seq
	}
	for i := range p.Entries {
		p.Entries[i].Rows = rowsOf(p.Entries[i].Changes)
	}
	return nil
}

// readMoment finds the event that the list is shown at: the last one up to the moment.
func (s *Server) readMoment(ctx context.Context, a asked, p *userPage) error {
	until := cmp.Or(a.at, &query.Moment{Seq: p.Head})
	if until.Time.IsZero() && until.Seq > p.Head || until.Time.After(time.Now()) {
		return query.ErrFuture
	}
	var last []entry
	_, err := s.list(ctx, a.id, query.HistoryFilter{Until: until, Order: query.Descending}, query.Page{Limit: 1}, &last)
	if err != nil || len(last) == 0 {
		return err
	}
	p.Event, p.At = &last[0], last[0].Seq
	p.Event.Rows = rowsOf(p.Event.Changes)
	return nil
}

func (s *Server) readList(ctx context.Context, a asked, p *userPage) error {
	filter := query.TaskFilter{
		Status: query.StatusAll, Sort: query.SortCreatedAt, Order: query.Descending, AsOf: &query.Moment{Seq: p.At},
	}
	answer, err := s.list(ctx, a.id, filter, query.Page{Limit: maxTasks, After: a.after}, &p.Tasks)
	if err == nil && answer.Next != nil {
		p.More = placeText(p.Tasks[len(p.Tasks)-1])
	}
	return err
}

// list reads a page of a user's list.
func (s *Server) list(
	ctx context.Context, user string, filter query.Filter, page query.Page, items any,
) (query.Answer, error) {
	listing, err := query.NewListing(filter)
	if err != nil {
		return query.Answer{}, err
	}
	listing.Page = page
	answer, err := s.Queries.List(ctx, query.Ask{UserID: user}, listing)
	if err != nil {
		return answer, err
	}
	return answer, json.Unmarshal(answer.Body, items)
}

// members are those of a task that change, in the order people read them.
var members = []string{"title", "description", "is_completed", "deleted"}

func rowsOf(changes map[string]*fromTo) (rows []change) {
	for member, c := range changes {
		rows = append(rows, change{Member: member, From: shownOf(c.From), To: shownOf(c.To)})
	}
	slices.SortFunc(rows, func(a, b change) int {
		return cmp.Or(
			slices.Index(members, a.Member)-slices.Index(members, b.Member),
			strings.Compare(a.Member, b.Member),
		)
	})
	return rows
}

func shownOf(value jsontext.Value) shown {
	switch value.Kind() {
	case '"':
		var text string
		if err := json.Unmarshal(value, &text); err == nil {
			return shown{Value: text, IsText: true}
		}
	case 'n', 0:
		return shown{Value: "–"}
	case 't':
		return shown{Value: "yes"}
	case 'f':
		return shown{Value: "no"}
	}
	return shown{Value: string(value)}
}

type verifyPage struct {
	ID string
	Verified
	Found []string
	Took  time.Duration
}

// Cut tells that there are more differences than are shown.
func (p verifyPage) Cut() bool { return p.Differences > int64(len(p.Found)) }

// verify compares one user, one at a time: it reads the whole of the user's stream.
func (s *Server) verify(w http.ResponseWriter, r *http.Request) {
	p := verifyPage{ID: r.PostForm.Get("id")}
	if p.ID == "" {
		s.fail(w, r, http.StatusUnprocessableEntity, "Say whose chain and read model to verify.")
		return
	}
	if !s.readID(w, r, p.ID) {
		return
	}
	select {
	case s.busy <- struct{}{}:
		defer func() { <-s.busy }()
	default:
		w.Header().Set("Retry-After", "5")
		s.fail(w, r, http.StatusTooManyRequests, "Another verification is running. Try again when it has ended.")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), verifyTimeout)
	defer cancel()
	began := time.Now()
	verified, err := s.Verify(ctx, p.ID, func(difference string) {
		if len(p.Found) < maxDifferences {
			p.Found = append(p.Found, difference)
		}
	})
	if err != nil {
		s.unavailable(w, r, err)
		return
	}
	p.Verified, p.Took = verified, time.Since(began).Round(time.Millisecond)
	s.render(w, r, http.StatusOK, "verified", "Verification", p)
}
