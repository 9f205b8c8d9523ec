package httpapi

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/labstack/echo/v4"

	"taskledger/events"
	"taskledger/query"
)

// cursor is where a page of a list ended, in the form a client carries. It is bound to the user and the query it was
// made for; what it holds the user has seen in the list already.
type cursor struct {
	Query string `json:"q"` // digest of the page
	query.Place
}

// page is a page of a user's list.
type page struct {
	user string
	query.Listing
}

// digest tells the list from all others, whatever the page.
func (p page) digest() string { return digest([]byte(p.Name() + " " + p.user)) }

func digest(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:12])
}

// tag is the weak entity tag of the page: of another one, or of another state of the user's tasks, it is another.
func (p page) tag(h query.Head) string {
	b := strconv.AppendInt([]byte(p.Name()+" "), int64(p.Limit), 10)
	if p.After != nil {
		b = fmt.Appendf(b, " %d %x %s %d", p.After.Time.UnixNano(), p.After.Title, p.After.ID, p.After.Seq)
	}
	return headTag(h, b, p.user)
}

// headTag is the weak entity tag of a user's answer that reflects the head; what tells it from other answers of that
// user is in name. Users without events have one head.
func headTag(h query.Head, name []byte, user string) string {
	b := append(name, h.EventID[:]...)
	for _, n := range []int64{events.TaskForm, h.Seq, h.Generation} {
		b = strconv.AppendInt(append(b, ' '), n, 10)
	}
	b = append(append(b, ' '), user...)
	return `W/"` + strconv.FormatInt(h.Seq, 10) + "-" + digest(b) + `"`
}

func (c cursor) encode() (string, error) {
	data, err := json.Marshal(c)
	return base64.RawURLEncoding.EncodeToString(data), err
}

// cursor reads the parameter of that name; nil when it is absent or wrong, which is noted.
func (in *input) cursor(values url.Values, of page) *query.Place {
	if !values.Has("cursor") {
		return nil
	}
	c, ok := decodeCursor(values.Get("cursor"))
	if !ok || c.Query != of.digest() {
		in.parameter("cursor", "invalid_cursor", "is not a cursor of this list")
		return nil
	}
	return &c.Place
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
	c.Time = c.Time.UTC()
	return c, c.Seq >= 0 && len(c.Title) <= maxBody
}

// setNext links to the next page (RFC 8288): the same request with the cursor in place of the one it had.
func setNext(c echo.Context, values url.Values, next cursor) error {
	encoded, err := next.encode()
	if err != nil {
		return err
	}
	values.Set("cursor", encoded)
	path := strings.TrimSuffix(c.Request().URL.EscapedPath(), "/")
	c.Response().Header().Set("Link", `<`+path+"?"+values.Encode()+`>; rel="next"`)
	return nil
}
