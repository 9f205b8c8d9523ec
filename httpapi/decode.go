package httpapi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"taskledger/command"
)

const (
	maxBody  = 64 << 10
	maxDepth = 100
)

// object is the top-level JSON object of a body: each member's raw value by name.
type object map[string]jsontext.Value

// object reads a request's body strictly. What is not JSON, or not of a size, type or encoding we take, is an error; a
// value that is not an object is noted, and nil.
func (in *input) object(r *http.Request, types ...string) (object, error) {
	raw, err := readBody(r, types...)
	if err != nil {
		return nil, err
	}
	return in.parseObject(raw)
}

func readBody(r *http.Request, types ...string) ([]byte, error) {
	var body bytes.Buffer
	body.Grow(int(min(max(r.ContentLength, 0), maxBody)) + bytes.MinRead)
	_, err := body.ReadFrom(r.Body)
	raw := body.Bytes()
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, payloadTooLarge(tooLarge.Limit)
	case err != nil:
		return nil, newProblem(
			http.StatusBadRequest,
			"invalid_json",
			"the body did not come to its end",
		).with("Connection", "close").
			because(err)
	}
	if encoding := strings.Join(
		r.Header.Values("Content-Encoding"),
		",",
	); encoding != "" &&
		!strings.EqualFold(encoding, "identity") {
		return nil, newProblem(
			http.StatusUnsupportedMediaType,
			"unsupported_media_type",
			"bodies must not be compressed",
		)
	}
	return raw, checkMediaType(r.Header.Values("Content-Type"), append(types, "application/json"))
}

func payloadTooLarge(limit int64) *problem {
	return newProblem(
		http.StatusRequestEntityTooLarge,
		"payload_too_large",
		fmt.Sprintf("the body must not be over %d bytes", limit),
	).
		with("Connection", "close")
}

// charsets are those of JSON, and none. Single quotes are no quotes of RFC 9110, but there are clients that send them.
var charsets = []string{"", "utf-8", "utf8", "'utf-8'", "'utf8'"}

func checkMediaType(sent, accepted []string) error {
	if len(sent) == 0 || len(sent) == 1 && slices.Contains(accepted, sent[0]) {
		return nil
	}
	mediaType, params, err := mime.ParseMediaType(strings.Join(sent, ","))
	if err == nil {
		charset := strings.ToLower(params["charset"])
		if slices.Contains(accepted, mediaType) && slices.Contains(charsets, charset) {
			return nil
		}
	}
	return newProblem(
		http.StatusUnsupportedMediaType,
		"unsupported_media_type",
		"the body must be "+accepted[len(accepted)-1],
	).
		with("Accept", strings.Join(accepted, ", "))
}

func invalidJSON(detail string) *problem {
	return newProblem(http.StatusBadRequest, "invalid_json", detail)
}

// parseObject checks the whole text before any member is looked at. encoding/json would take duplicate members, other
// cases of a name and bad UTF-8.
func (in *input) parseObject(raw []byte) (object, error) {
	switch {
	case !utf8.Valid(raw):
		return nil, invalidJSON("the body is not UTF-8")
	case depth(raw) > maxDepth:
		return nil, invalidJSON(fmt.Sprintf("the body is nested deeper than %d", maxDepth))
	}
	// The text is valid UTF-8, so the option only lets lone surrogates pass, which are judged member by member.
	dec := jsontext.NewDecoder(bytes.NewBuffer(raw), jsontext.AllowInvalidUTF8(true))
	members, err := readMembers(dec, raw)
	switch {
	case errors.Is(err, io.EOF) && dec.InputOffset() == 0:
		return nil, invalidJSON("the body is empty")
	case err != nil:
		return nil, invalidJSON(syntaxDetail(err))
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, invalidJSON("there is something behind the JSON value")
	}
	if members == nil {
		in.add(inputProblem{Pointer: new(string), Code: "invalid_type", Detail: "the body must be a JSON object"})
	}
	return members, nil
}

// readMembers reads one value; it is nil unless it is an object.
func readMembers(dec *jsontext.Decoder, raw []byte) (object, error) {
	if dec.PeekKind() != '{' {
		_, err := dec.ReadValue()
		return nil, err
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	members := object{}
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return nil, err
		}
		key := name.String()
		value, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		end := dec.InputOffset()
		members[key] = raw[end-int64(len(value)) : end]
	}
	_, err := dec.ReadToken()
	return members, err
}

// depth is how deep the arrays and objects of a JSON text are nested.
func depth(raw []byte) int {
	deepest, now, quoted := 0, 0, false
	for i := 0; i < len(raw); i++ {
		switch raw[i] {
		case '\\':
			i++
		case '"':
			quoted = !quoted
		case '{', '[':
			if !quoted {
				now++
				deepest = max(deepest, now)
			}
		case '}', ']':
			if !quoted {
				now--
			}
		}
	}
	return deepest
}

// syntaxDetail says what and where, without quoting the body.
func syntaxDetail(err error) string {
	var syntax *jsontext.SyntacticError
	if !errors.As(err, &syntax) {
		return "the body is not JSON"
	}
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return fmt.Sprintf("the body is not JSON: a member stands twice, at byte %d", syntax.ByteOffset)
	}
	return fmt.Sprintf("the body is not JSON, at byte %d", syntax.ByteOffset)
}

// input collects everything that is wrong with a request, so that it can be told together.
type input struct {
	at    string // where in the body the members that are read are, as a path with a slash at its end
	wrong []inputProblem
}

func (in *input) add(p inputProblem) { in.wrong = append(in.wrong, p) }

func (in *input) member(name, code, detail string) { in.add(atMember(in.at+name, code, detail)) }

// atMember is a problem with a member of the body, whose pointer begins with a slash that path lacks.
func atMember(path, code, detail string) inputProblem {
	pointer := "/" + path
	return inputProblem{Pointer: &pointer, Code: code, Detail: detail}
}

func (in *input) field(err *command.FieldError) {
	if err != nil {
		in.member(err.Field, err.Code, err.Detail)
	}
}

// problem is nil when nothing was wrong.
func (in *input) problem() error {
	if len(in.wrong) == 0 {
		return nil
	}
	return invalid(in.wrong)
}

// text reads a string member; ok is false when it is absent, or wrong, which is noted.
func (in *input) text(o object, name string) (s string, ok bool) {
	value, present := o[name]
	if !present {
		return "", false
	}
	if value.Kind() != '"' {
		in.member(name, "invalid_type", "must be a string")
		return "", false
	}
	unquoted, err := jsontext.AppendUnquote(nil, value)
	if err != nil {
		in.member(name, "invalid_character", "must not have lone surrogates")
		return "", false
	}
	return string(unquoted), true
}

func (in *input) title(o object) *string {
	title, ok := in.text(o, "title")
	if !ok {
		return nil
	}
	in.field(command.CheckTitle(title))
	return &title
}

// description is nil when absent, and points to nil when it is null.
func (in *input) description(o object) **string {
	var none *string
	if value, present := o["description"]; present && value.Kind() == 'n' {
		return &none
	}
	description, ok := in.text(o, "description")
	if !ok {
		return nil
	}
	in.field(command.CheckDescription(description))
	some := &description
	return &some
}

func (in *input) boolean(o object, name string) *bool {
	value, present := o[name]
	if !present {
		return nil
	}
	if value.Kind() != 't' && value.Kind() != 'f' {
		in.member(name, "invalid_type", "must be true or false")
		return nil
	}
	b := value.Kind() == 't'
	return &b
}

// seq reads a member that is a version; 0 when it is absent, or wrong, which is noted.
func (in *input) seq(o object, name string) int64 {
	value, present := o[name]
	if !present {
		return 0
	}
	n, err := strconv.ParseInt(string(value), 10, 64)
	switch {
	case value.Kind() != '0' || errors.Is(err, strconv.ErrSyntax):
		in.member(name, "invalid_type", "must be an integer")
	case err != nil || n < 1:
		in.member(name, "out_of_range", "must be a version, an integer from 1 on")
	}
	return n
}
