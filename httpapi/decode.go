package httpapi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
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

// object reads a request's body strictly. What is not JSON, or not of a size, type or encoding we take, is an error; a value that is
// not an object is noted, and nil.
func (in *input) object(r *http.Request, types ...string) (object, error) {
	raw, err := readBody(r, types...)
	if err != nil {
		return nil, err
	}
	return in.parseObject(raw)
}

func readBody(r *http.Request, types ...string) ([]byte, error) {
	raw, err := io.ReadAll(r.Body)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, payloadTooLarge(tooLarge.Limit)
	case err != nil:
		return nil, newProblem(http.StatusBadRequest, "invalid_json", "the body did not come to its end").with("Connection", "close").because(err)
	}
	if encoding := strings.Join(r.Header.Values("Content-Encoding"), ","); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return nil, newProblem(http.StatusUnsupportedMediaType, "unsupported_media_type", "bodies must not be compressed")
	}
	return raw, checkMediaType(r.Header.Values("Content-Type"), append(types, "application/json"))
}

func payloadTooLarge(limit int64) *problem {
	return newProblem(http.StatusRequestEntityTooLarge, "payload_too_large", fmt.Sprintf("the body must not be over %d bytes", limit)).
		with("Connection", "close")
}

func checkMediaType(sent, accepted []string) error {
	if len(sent) == 0 {
		return nil
	}
	mediaType, params, err := mime.ParseMediaType(strings.Join(sent, ","))
	if err == nil {
		charset := params["charset"]
		for _, a := range accepted {
			if mediaType == a && (charset == "" || strings.EqualFold(charset, "utf-8")) {
				return nil
			}
		}
	}
	return newProblem(http.StatusUnsupportedMediaType, "unsupported_media_type", "the body must be "+accepted[len(accepted)-1]).
		with("Accept", strings.Join(accepted, ", "))
}

func invalidJSON(detail string) *problem {
	return newProblem(http.StatusBadRequest, "invalid_json", detail)
}

// parseObject checks the whole text first, so that it is malformed or not before any member is looked at. encoding/json would
// take duplicate members, other cases of a name and bad UTF-8.
func (in *input) parseObject(raw []byte) (object, error) {
	if !utf8.Valid(raw) {
		return nil, invalidJSON("the body is not UTF-8")
	}
	if err := checkSyntax(raw); err != nil {
		return nil, err
	}
	// The text is valid UTF-8, so the option only lets lone surrogates pass, which are judged member by member.
	dec := jsontext.NewDecoder(bytes.NewReader(raw), jsontext.AllowInvalidUTF8(true))
	if dec.PeekKind() != '{' {
		in.add(inputProblem{Pointer: new(string), Code: "invalid_type", Detail: "the body must be a JSON object"})
		return nil, nil
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, invalidJSON(err.Error())
	}
	members := object{}
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return nil, invalidJSON(syntaxDetail(err))
		}
		key := name.String()
		value, err := dec.ReadValue()
		if err != nil {
			return nil, invalidJSON(syntaxDetail(err))
		}
		members[key] = value.Clone()
	}
	return members, nil
}

func checkSyntax(raw []byte) error {
	dec := jsontext.NewDecoder(bytes.NewReader(raw), jsontext.AllowInvalidUTF8(true))
	for first := true; first || dec.StackDepth() > 0; first = false {
		_, err := dec.ReadToken()
		if errors.Is(err, io.EOF) && first {
			return invalidJSON("the body is empty")
		}
		if err != nil {
			return invalidJSON(syntaxDetail(err))
		}
		if dec.StackDepth() > maxDepth {
			return invalidJSON(fmt.Sprintf("the body is nested deeper than %d", maxDepth))
		}
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return invalidJSON("there is something behind the JSON value")
	}
	return nil
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
	wrong []inputProblem
}

func (in *input) add(p inputProblem) { in.wrong = append(in.wrong, p) }

func (in *input) member(name, code, detail string) {
	pointer := "/" + name
	in.add(inputProblem{Pointer: &pointer, Code: code, Detail: detail})
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
