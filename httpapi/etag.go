package httpapi

import (
	"net/http"
	"strconv"
	"strings"

	"taskledger/command"
)

// etag is the strong entity tag of a task at a version.
func etag(version int64) string {
	return `"` + strconv.FormatInt(version, 10) + `"`
}

// ifMatch reads the If-Match header (RFC 9110, section 13.1.1). A weak tag is taken and never matches, as is a tag that
// is no version; what is not a list of tags is an error.
func ifMatch(r *http.Request) (command.Match, error) {
	fields := r.Header.Values("If-Match")
	if len(fields) == 0 {
		return command.Match{}, nil
	}
	all := strings.TrimSpace(strings.Join(fields, ","))
	if all == "*" {
		return command.Match{Present: true, Any: true}, nil
	}
	tags, ok := parseTags(all)
	if !ok {
		p := newProblem(http.StatusBadRequest, "validation_error", "If-Match: must be a list of entity tags, or *")
		p.Errors = []inputProblem{
			{Parameter: "If-Match", Code: "invalid_value", Detail: "must be a list of entity tags, or *"},
		}
		return command.Match{}, p
	}
	match := command.Match{Present: true}
	for _, t := range tags {
		version, err := strconv.ParseInt(t.opaque, 10, 64)
		if err == nil && !t.weak && strconv.FormatInt(version, 10) == t.opaque {
			match.Versions = append(match.Versions, version)
		}
	}
	return match, nil
}

// noneMatches tells whether an If-None-Match header names the tag, by weak comparison (RFC 9110, section 13.1.2). A
// header that can't be read names none.
func noneMatches(r *http.Request, tag string) bool {
	all := strings.TrimSpace(strings.Join(r.Header.Values("If-None-Match"), ","))
	if all == "*" {
		return true
	}
	tags, ok := parseTags(all)
	if !ok {
		return false
	}
	for _, t := range tags {
		if `"`+t.opaque+`"` == strings.TrimPrefix(tag, "W/") {
			return true
		}
	}
	return false
}

type entityTag struct {
	opaque string
	weak   bool
}

// parseTags reads 1#entity-tag of RFC 9110, section 8.8.3.
func parseTags(s string) ([]entityTag, bool) {
	var tags []entityTag
	for {
		s = strings.TrimLeft(s, " \t,")
		if s == "" {
			return tags, len(tags) > 0
		}
		rest, weak := strings.CutPrefix(s, "W/")
		if rest == "" || rest[0] != '"' {
			return nil, false
		}
		opaque, after, closed := strings.Cut(rest[1:], `"`)
		if !closed || !isTagText(opaque) {
			return nil, false
		}
		tags = append(tags, entityTag{opaque: opaque, weak: weak})
		s = strings.TrimLeft(after, " \t")
		if s != "" && s[0] != ',' {
			return nil, false
		}
	}
}

func isTagText(s string) bool {
	for i := range len(s) {
		if s[i] < 0x21 || s[i] == 0x7f {
			return false
		}
	}
	return true
}
