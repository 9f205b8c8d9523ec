package httpapi

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"taskledger/query"
)

const (
	maxLimit  = 500
	maxSearch = 100
)

func (in *input) parameter(name, code, detail string) {
	in.add(inputProblem{Parameter: name, Code: code, Detail: detail})
}

// parameters are those that any of the lists knows; others are ignored, well-formed or not.
var parameters = []string{
	"status",
	"sort",
	"order",
	"q",
	"limit",
	"cursor",
	"type",
	"task_id",
	"since",
	"until",
	"as_of",
	"seq",
	"min_version",
}

// rfc3339 is stricter than time.Parse, which takes hours of one digit and a comma for the point.
var rfc3339 = regexp.MustCompile(`^\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})$`)

// values parses the query string; a parameter that can't be parsed is noted.
func (in *input) values(r *http.Request) url.Values {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err == nil {
		return values
	}
	for pair := range strings.SplitSeq(r.URL.RawQuery, "&") {
		name, _, _ := strings.Cut(pair, "=")
		if _, err := url.ParseQuery(pair); err != nil && slices.Contains(parameters, name) {
			in.parameter(name, "invalid_value", "is not well-formed")
		}
	}
	return values
}

// taskID takes every form that uuid.Parse takes.
func (in *input) taskID(name, s string) uuid.UUID {
	id, err := uuid.Parse(s)
	if err != nil {
		in.parameter(name, "invalid_uuid", "must be a UUID")
	}
	return id
}

// choice reads a parameter that has one of some values; absent, it is the first of them.
func choice[T ~string](in *input, values url.Values, name string, options ...T) T {
	if !values.Has(name) {
		return options[0]
	}
	given := T(values.Get(name))
	words := make([]string, len(options))
	for i, option := range options {
		if given == option {
			return option
		}
		words[i] = string(option)
	}
	in.parameter(name, "invalid_value", "must be one of "+strings.Join(words, ", "))
	return options[0]
}

// limit reads the limit of a page; absent, it is the one given.
func (in *input) limit(values url.Values, absent int) int {
	if !values.Has("limit") {
		return absent
	}
	n, err := strconv.ParseUint(values.Get("limit"), 10, 32)
	if err != nil || n < 1 || n > maxLimit {
		in.parameter("limit", "out_of_range", "must be a number from 1 to "+strconv.Itoa(maxLimit))
		return absent
	}
	return int(n)
}

func (in *input) search(values url.Values) string {
	if !values.Has("q") {
		return ""
	}
	q := values.Get("q")
	switch n := utf8.RuneCountInString(q); {
	case n < 1 || n > maxSearch:
		in.parameter("q", "out_of_range", "must have 1 to "+strconv.Itoa(maxSearch)+" characters")
	case !utf8.ValidString(q) || strings.ContainsRune(q, 0):
		in.parameter("q", "invalid_character", "must be UTF-8 without U+0000")
	}
	return q
}

// moment reads a seq or an RFC 3339 time.
func (in *input) moment(values url.Values, name string) *query.Moment {
	if !values.Has(name) {
		return nil
	}
	s := values.Get(name)
	if seq, err := strconv.ParseUint(s, 10, 63); err == nil {
		return &query.Moment{Seq: int64(seq)}
	}
	s = strings.Replace(s, " ", "+", 1) // a + that was not percent-encoded
	at, err := time.Parse(time.RFC3339Nano, strings.ToUpper(s))
	if err != nil || !rfc3339.MatchString(s) {
		in.parameter(name, "invalid_value", "must be a seq or an RFC 3339 time")
		return nil
	}
	return &query.Moment{Time: at} // the zero time is seq 0: both are before every event
}
