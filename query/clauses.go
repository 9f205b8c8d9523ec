package query

import (
	"slices"
	"strconv"
	"strings"
)

// clauses is SQL that grows, with its arguments.
type clauses struct {
	text []byte
	next int // the number of the next parameter
	args []any
}

// add appends a clause; each $? in it takes the next of args.
func (c *clauses) add(clause string, args ...any) {
	if c.text == nil {
		c.text = make([]byte, 0, 1024)
	}
	for _, arg := range args {
		before, after, _ := strings.Cut(clause, "$?")
		c.text = strconv.AppendInt(append(append(c.text, before...), '$'), int64(c.next), 10)
		clause = after
		c.args = append(c.args, arg)
		c.next++
	}
	c.text = append(c.text, clause...)
}

// limit asks for one item more than the page has, which tells whether there is a next one.
func (c *clauses) limit(page Page) {
	if page.Limit > 0 {
		c.add(` LIMIT $?`, page.Limit+1)
	}
}

// gather makes one row of a page of ready-made items, which costs less than many, here and there.
func (c *clauses) gather(page Page) {
	if page.Limit > 0 {
		c.text = slices.Insert(c.text, 0, []byte(`
			SELECT string_agg(i.items, '`+separator+`') AS items FROM (`)...)
		c.add(`) i`)
	}
}

// lateral joins the clauses to a statement.
func (c *clauses) lateral() string {
	return `
	LEFT JOIN LATERAL (` + string(c.text) + `
	) x ON true`
}
