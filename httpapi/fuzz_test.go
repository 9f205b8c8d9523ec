package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"taskledger/command"
	"taskledger/query"
)

// What is taken for a body is JSON for everyone, and its texts are within the limits and never repaired.
func FuzzBody(f *testing.F) {
	for _, seed := range []string{
		`{"title":"a","description":null,"is_completed":true}`, `{"title":"\ud83e\udd5b"}`, `{"title":"\ud800"}`,
		`{"a":1,"a":2}`, `[[[]]]`, "{\"title\":\"\xff\"}",
		`{"title":"a"}{}`, `{"title":"` + strings.Repeat("é", 101) + `"}`, `{"\u0074itle":"x"}`, ``, `nul`,
		`{"title":1e999}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var in input
		o, err := in.parseObject(raw)
		var p *problem
		if err != nil && (!errors.As(err, &p) || p.Status != 400) {
			t.Fatalf("an error that is no answer: %v", err)
		}
		if err != nil || in.problem() != nil {
			return
		}
		var reference map[string]any
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.UseNumber()
		if err := dec.Decode(&reference); !utf8.Valid(raw) || err != nil || len(reference) != len(o) {
			t.Fatalf("took %q: %v", raw, err)
		}
		title, description := in.title(o), in.description(o)
		in.boolean(o, "is_completed")
		if in.problem() != nil {
			return
		}
		if title != nil && (command.CheckTitle(*title) != nil || reference["title"] != *title) {
			t.Fatalf("title %q of %q", *title, raw)
		}
		if description != nil && *description != nil && reference["description"] != **description {
			t.Fatalf("description %q of %q", **description, raw)
		}
	})
}

func FuzzCursor(f *testing.F) {
	for _, c := range []cursor{
		{}, {Query: "q", Place: query.Place{Time: time.Unix(1, 1000), ID: uuid.New()}},
		{Query: "q", Place: query.Place{Title: []byte{0, 255}, Seq: 9}},
	} {
		encoded, err := c.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(encoded)
	}
	f.Add("e30")
	f.Fuzz(func(t *testing.T, s string) {
		c, ok := decodeCursor(s)
		if !ok {
			return
		}
		encoded, err := c.encode()
		again, ok := decodeCursor(encoded)
		if err != nil || !ok || !reflect.DeepEqual(again, c) {
			t.Fatalf("%q is %+v, and back %+v, %v", s, c, again, err)
		}
	})
}

func FuzzParameters(f *testing.F) {
	for _, seed := range []string{
		"status=all&sort=title&order=asc&limit=500&q=x", "limit=501", "q=%00", "since=1&until=2026-11-22T12:00:00Z",
		"type=TaskCreated&task_id=x", "a=%zz",
		"since=0001-01-01T00:00:00Z", "since=9999-12-31T23:59:59.999999999-23:59", "since=9223372036854775808",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		r := &http.Request{URL: &url.URL{RawQuery: raw}}
		var in input
		limit := in.limit(in.values(r), 0)
		filter := (*Server)(nil).tasks(&in, nil, in.values(r)).filter.(query.TaskFilter)
		if in.problem() == nil && (limit < 0 || limit > maxLimit || !utf8.ValidString(filter.Search) ||
			strings.ContainsRune(filter.Search, 0) ||
			!slices.Contains([]query.Order{query.Ascending, query.Descending}, filter.Order)) {
			t.Fatalf("%q is %+v", raw, filter)
		}
		var other input
		history := (*Server)(nil).history(&other, nil, other.values(r)).filter.(query.HistoryFilter)
		for _, m := range []*query.Moment{history.Since, history.Until} {
			if other.problem() == nil && m != nil && m.Seq < 0 {
				t.Fatalf("%q is %+v", raw, history)
			}
		}
	})
}

func FuzzTaskID(f *testing.F) {
	id := uuid.New().String()
	for _, seed := range []string{id, "urn:uuid:" + id, "{" + id + "}", strings.ReplaceAll(id, "-", ""), "", "x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var in input
		got := in.taskID("id", s)
		want, err := uuid.Parse(s)
		if (err == nil) != (in.problem() == nil) || err == nil && got != want {
			t.Fatalf("%q is %v, want %v, %v", s, got, want, err)
		}
	})
}

func FuzzEntityTags(f *testing.F) {
	for _, seed := range []string{`"1"`, `W/"1", "2"`, `*`, `"1`, `,,"a",`, `"1""2"`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tags, ok := parseTags(s)
		if ok != (len(tags) > 0) {
			t.Fatalf("%q: %d tags, taken %t", s, len(tags), ok)
		}
		for _, tag := range tags {
			if !strings.Contains(s, `"`+tag.opaque+`"`) {
				t.Fatalf("%q has no tag %q", s, tag.opaque)
			}
		}
	})
}
