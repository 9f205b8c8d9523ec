package admin

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

//go:embed *.html
var templates embed.FS

var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"text":  visible,
	"time":  func(t time.Time) string { return t.UTC().Format(timeLayout) },
	"clock": func(t time.Time) string { return t.UTC().Format("15:04") },
	"iso":   func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) },
	"words": func(name string) string { return strings.ReplaceAll(name, "_", " ") },
}).ParseFS(templates, "*.html"))

const timeLayout = "2006-01-02 15:04:05 UTC"

// pageTimeout bounds what a page asks the database.
const pageTimeout = 10 * time.Second

// page is what every template gets.
type page struct {
	Title   string
	Version string
	CSRF    string
	SignOut bool // somebody has signed in
	Here    string
	Data    any
}

// render answers with a page, made whole before any of it is sent.
func (s *Server) render(w http.ResponseWriter, r *http.Request, status int, name, title string, data any) {
	var b bytes.Buffer
	p := page{
		Title: title, Version: s.Version, CSRF: s.csrf, Here: r.URL.Path, Data: data,
		SignOut: s.Token != "" && name != "sign-in",
	}
	if err := pages.ExecuteTemplate(&b, name, p); err != nil {
		s.Log.Error("a page of the admin port was not made", "page", name, "err", err)
		http.Error(w, "this page could not be made; the log says why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // who has gone does not read it
}

// fail answers with what is wrong, for a person.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, status int, told string) {
	s.render(w, r, status, "told", "This did not work", told)
}

// unavailable answers for a database that did not.
func (s *Server) unavailable(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // nobody reads it
	}
	s.Log.Warn("a page of the admin port could not be read from the database", "err", err)
	s.fail(w, r, http.StatusServiceUnavailable, "The database did not answer, or not in time. The log says why.")
}

// visible shows what could change how the text around it is read, and what cannot be seen, by its number.
func visible(text string) string {
	var b strings.Builder
	for _, c := range text {
		if c == utf8.RuneError || c != '\n' && (unicode.IsControl(c) || unicode.Is(deceptive, c)) {
			fmt.Fprintf(&b, "[U+%04X]", c)
		} else {
			b.WriteRune(c)
		}
	}
	return b.String()
}

// deceptive are characters that turn the direction of text, end a line or have no width. Joiners stay: emoji and
// scripts need them.
var deceptive = &unicode.RangeTable{R16: []unicode.Range16{
	{Lo: 0x061C, Hi: 0x061C, Stride: 1},
	{Lo: 0x200B, Hi: 0x200B, Stride: 1},
	{Lo: 0x200E, Hi: 0x200F, Stride: 1},
	{Lo: 0x2028, Hi: 0x202E, Stride: 1},
	{Lo: 0x2060, Hi: 0x206F, Stride: 1},
	{Lo: 0xFEFF, Hi: 0xFEFF, Stride: 1},
}}

// overviewPage is the page at /.
type overviewPage struct {
	Now         time.Time
	Status      *node
	StatusError string
	Parked      []Parked
	ParkedError string
	Plots       []plotView
}

func (s *Server) overview(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), pageTimeout)
	defer cancel()
	now := time.Now()
	p := overviewPage{Now: now}
	// The page is needed most when the database is away: what is not known is said in its place.
	status, err := s.Status(ctx)
	if err == nil {
		p.Status, err = nodeOf(status)
	}
	if err != nil {
		s.Log.Warn("the status was not read", "err", err)
		p.StatusError = "The status could not be read: the database did not answer, or not in time. The log says why."
	}
	if p.Parked, err = s.Parked(ctx); err != nil {
		s.Log.Warn("parked users were not read", "err", err)
		p.ParkedError = "Who is parked could not be read: the database did not answer, or not in time. " +
			"The log says why."
	}
	for i, d := range s.samples.drawings(now.Add(-time.Hour)) {
		p.Plots = append(p.Plots, viewOf(d, i, now))
	}
	s.render(w, r, http.StatusOK, "overview", "Overview", p)
}

// node is a value as its JSON has it, in its order: a text, an object, or a list.
type node struct {
	Text   string
	Fields []field
	Items  []*node
	Kind   string   // text, object, list
	Table  []string // of a list of objects with the same members: their names
}

type field struct {
	Name  string
	Value *node
}

// nodeOf reads a value by its JSON.
func nodeOf(value any) (*node, error) {
	text, err := jsonOf(value)
	if err != nil {
		return nil, fmt.Errorf("write the status: %w", err)
	}
	return readNode(jsontext.NewDecoder(bytes.NewReader(text)))
}

func readNode(d *jsontext.Decoder) (*node, error) {
	token, err := d.ReadToken()
	if err != nil {
		return nil, err
	}
	switch token.Kind() {
	case '{':
		return readObject(d)
	case '[':
		return readList(d)
	case 'n':
		return &node{Kind: "text", Text: "–"}, nil
	case 't':
		return &node{Kind: "text", Text: "yes"}, nil
	case 'f':
		return &node{Kind: "text", Text: "no"}, nil
	}
	return &node{Kind: "text", Text: readable(token.String())}, nil
}

// readable is a text of the status as people read it.
func readable(text string) string {
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return at.UTC().Format(timeLayout)
	}
	return cmp.Or(text, "–")
}

func readObject(d *jsontext.Decoder) (*node, error) {
	n := &node{Kind: "object"}
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		text := name.String() // before the next token takes its place
		value, err := readNode(d)
		if err != nil {
			return nil, err
		}
		n.Fields = append(n.Fields, field{text, value})
	}
	_, err := d.ReadToken()
	return n, err
}

func readList(d *jsontext.Decoder) (*node, error) {
	n := &node{Kind: "list"}
	for d.PeekKind() != ']' {
		item, err := readNode(d)
		if err != nil {
			return nil, err
		}
		n.Items = append(n.Items, item)
	}
	n.Table = n.columns()
	_, err := d.ReadToken()
	return n, err
}

// columns are the names that all items of a list have in the same order; nil if they differ or are no objects.
func (n *node) columns() (names []string) {
	for i, item := range n.Items {
		if item.Kind != "object" || i > 0 && len(item.Fields) != len(names) {
			return nil
		}
		for j, f := range item.Fields {
			if i == 0 {
				names = append(names, f.Name)
			} else if names[j] != f.Name {
				return nil
			}
		}
	}
	return names
}

// parkedPage asks whether something is to be done about a parked user, or tells that it was.
type parkedPage struct {
	Parked
	Action string
	Told   string // after it; else empty
	Still  *Parked
}

// The actions on a parked user.
const (
	retry = "retry"
	skip  = "skip"
)

// parkedOf finds the parked user whom a request is about, and answers if there is none.
func (s *Server) parkedOf(w http.ResponseWriter, r *http.Request, action, user string) (Parked, bool) {
	if action != retry && action != skip {
		s.fail(w, r, http.StatusUnprocessableEntity, "There are two things to do about a parked user: retry and skip.")
		return Parked{}, false
	}
	ctx, cancel := context.WithTimeout(r.Context(), pageTimeout)
	defer cancel()
	all, err := s.Parked(ctx)
	if err != nil {
		s.unavailable(w, r, err)
		return Parked{}, false
	}
	for _, p := range all {
		if p.UserID == user {
			return p, true
		}
	}
	s.fail(w, r, http.StatusNotFound, "This user is not parked, or not any more.")
	return Parked{}, false
}

func (s *Server) confirmParked(w http.ResponseWriter, r *http.Request) {
	action := r.URL.Query().Get("action")
	if p, ok := s.parkedOf(w, r, action, r.URL.Query().Get("id")); ok {
		s.render(w, r, http.StatusOK, "parked", title(action), parkedPage{Parked: p, Action: action})
	}
}

func title(action string) string {
	if action == skip {
		return "Skip an event"
	}
	return "Retry a parked user"
}

func (s *Server) changeParked(w http.ResponseWriter, r *http.Request) {
	action, user := r.PostForm.Get("action"), r.PostForm.Get("id")
	p, ok := s.parkedOf(w, r, action, user)
	if !ok {
		return
	}
	if seq, err := strconv.ParseInt(r.PostForm.Get("seq"), 10, 64); err != nil || seq != p.Seq {
		s.fail(w, r, http.StatusConflict, "This user is parked at another event now. Look at it first.")
		return
	}
	// What is begun is ended, whoever goes.
	ctx := context.WithoutCancel(r.Context())
	do := func() error { return s.Retry(ctx, user) }
	if action == skip {
		do = func() error { return s.Skip(ctx, user, p.Seq) }
	}
	if err := do(); err != nil {
		if told := new(Refusal); errors.As(err, told) {
			s.fail(w, r, http.StatusConflict, told.Error())
			return
		}
		s.unavailable(w, r, err)
		return
	}
	s.Log.Info("an operator changed a parked user", "action", action, "seq", p.Seq)
	told := parkedPage{Parked: p, Action: action, Told: "The read model follows this user again."}
	all, err := s.Parked(ctx)
	if err != nil {
		s.unavailable(w, r, err)
		return
	}
	for _, q := range all {
		if q.UserID == user {
			told.Still, told.Told = &q, "This user is parked still, or again."
		}
	}
	s.render(w, r, http.StatusOK, "parked", title(action), told)
}

// Refusal is an error whose text is for the person at the page: what was asked for cannot be done now.
type Refusal string

func (r Refusal) Error() string { return string(r) }
