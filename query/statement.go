package query

import (
	"strconv"
	"strings"
)

// statement is SQL that grows by clauses, with its arguments.
type statement struct {
	text string
	args []any
}

func newStatement(text string, args ...any) *statement {
	return &statement{text: text, args: args}
}

// add appends a clause; each $? in it takes the next of args.
func (s *statement) add(clause string, args ...any) {
	for _, arg := range args {
		s.args = append(s.args, arg)
		clause = strings.Replace(clause, "$?", "$"+strconv.Itoa(len(s.args)), 1)
	}
	s.text += clause
}
