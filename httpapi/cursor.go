package httpapi

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"taskledger/query"
)

// cursor is where a page of a list ended, in the form a client carries. It is bound to the user and the query it was made for;
// what it holds the user has seen in the list already.
type cursor struct {
	Query string    `json:"q"`           // fingerprint of user, list and filter
	Time  int64     `json:"t,omitzero"`  // Unix microseconds
	Title []byte    `json:"k,omitempty"` // a title key
	ID    uuid.UUID `json:"i,omitzero"`
	Seq   int64     `json:"s,omitzero"`
}

// fingerprint tells lists apart: by user, by what is listed, and by everything but the place and size of the page.
func fingerprint(parts ...string) string {
	h := sha256.New()
	var size [8]byte
	for _, part := range parts {
		binary.BigEndian.PutUint64(size[:], uint64(len(part)))
		h.Write(size[:])
		h.Write([]byte(part))
	}
	return hex.EncodeToString(h.Sum(nil)[:12])
}

func (c cursor) encode() (string, error) {
	data, err := json.Marshal(c)
	return base64.RawURLEncoding.EncodeToString(data), err
}

// cursor reads the parameter of that name; nil when it is absent or wrong, which is noted.
func (in *input) cursor(values url.Values, of string) *cursor {
	if !values.Has("cursor") {
		return nil
	}
	c, ok := decodeCursor(values.Get("cursor"))
	if !ok || c.Query != of {
		in.parameter("cursor", "invalid_cursor", "is not a cursor of this list")
		return nil
	}
	return c
}

func decodeCursor(s string) (*cursor, bool) {
	data, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, false
	}
	c := &cursor{}
	if err := json.Unmarshal(data, c, json.RejectUnknownMembers(true)); err != nil {
		return nil, false
	}
	return c, c.Seq >= 0 && len(c.Title) <= maxBody && validMicros(c.Time)
}

// validMicros: PostgreSQL's timestamps end in the year 294276, and JSON's in 9999.
func validMicros(t int64) bool {
	year := time.UnixMicro(t).UTC().Year()
	return year >= 1 && year <= 9999
}

func taskCursor(of string, c query.TaskCursor) cursor {
	out := cursor{Query: of, Title: c.Title, ID: c.ID}
	if !c.Time.IsZero() {
		out.Time = c.Time.UnixMicro()
	}
	return out
}

func (c *cursor) task() *query.TaskCursor {
	if c == nil {
		return nil
	}
	return &query.TaskCursor{Time: time.UnixMicro(c.Time).UTC(), Title: c.Title, ID: c.ID}
}

// tasksFingerprint names the list of f.
func tasksFingerprint(user string, f query.TaskFilter) string {
	return fingerprint("tasks", user, string(f.Status), string(f.Sort), string(f.Order), f.Search)
}

// historyFingerprint names the list of f.
func historyFingerprint(user string, f query.HistoryFilter) string {
	task := ""
	if f.TaskID != nil {
		task = f.TaskID.String()
	}
	return fingerprint("history", user, task, string(f.Type), momentText(f.Since), momentText(f.Until), string(f.Order))
}

func momentText(m *query.Moment) string {
	switch {
	case m == nil:
		return ""
	case m.Time.IsZero():
		return strconv.FormatInt(m.Seq, 10)
	}
	return m.Time.UTC().Format(time.RFC3339Nano)
}

// setNext links to the next page (RFC 8288): the same request with the cursor in place of the one it had.
func setNext(w http.ResponseWriter, r *http.Request, next cursor) error {
	encoded, err := next.encode()
	if err != nil {
		return err
	}
	values := r.URL.Query()
	values.Set("cursor", encoded)
	w.Header().Set("Link", `<`+strings.TrimSuffix(r.URL.EscapedPath(), "/")+"?"+values.Encode()+`>; rel="next"`)
	return nil
}
