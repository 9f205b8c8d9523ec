package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/rivo/uniseg"
	"golang.org/x/term"

	"taskledger/events"
)

// shownID is how many digits of a task's id the table shows: the last ones, because those of a UUIDv7 before them are a
// time.
const shownID = 12

// The columns of the table. From flexible on they give way when the terminal is narrow.
const (
	flexible  = 3
	leastCell = 3
	gap       = "  "
)

var heading = []string{"TIME", "WHAT", "TASK", "FROM", "TO", "BY", "REQUEST"}

// verbs are what happened, as people say it.
var verbs = map[events.Type]string{
	events.TypeTaskCreated: "created", events.TypeTaskImported: "imported", events.TypeTaskRenamed: "renamed",
	events.TypeTaskDescribed: "described", events.TypeTaskCompleted: "completed", events.TypeTaskReopened: "reopened",
	events.TypeTaskDeleted: "deleted", events.TypeTaskRestored: "restored", events.TypeUserErased: "erased",
}

// table prints history entries for a person.
type table struct {
	width  int   // of the terminal; 0 = there is none, and nothing is cut
	widths []int // of the columns; nil = nothing is printed yet
}

func newTable(w io.Writer) *table {
	t := &table{}
	if f, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil {
			t.width = width
		}
	}
	return t
}

// print prints a page. The first one decides how wide the columns are.
func (t *table) print(w io.Writer, entries []jsontext.Value) error {
	var rows [][]string
	if t.widths == nil {
		head := append([]string{}, heading...)
		head[0] += " (" + time.Now().Format("MST") + ")"
		rows = append(rows, head)
	}
	for _, text := range entries {
		var e shownEntry
		if err := json.Unmarshal(text, &e); err != nil {
			return fmt.Errorf("read an entry: %w", err)
		}
		rows = append(rows, e.rows()...)
	}
	if t.widths == nil {
		t.fit(rows)
	}
	for _, row := range rows {
		if _, err := io.WriteString(w, t.line(row)); err != nil {
			return err
		}
	}
	return nil
}

// shownEntry is a history entry, for reading.
type shownEntry struct {
	Type       events.Type       `json:"type"`
	TaskID     string            `json:"task_id"`
	RecordedAt time.Time         `json:"recorded_at"`
	Actor      string            `json:"actor"`
	RequestID  string            `json:"request_id"`
	Changes    map[string]fromTo `json:"changes"`
}

type fromTo struct {
	From any `json:"from"`
	To   any `json:"to"`
}

// rows are one for the entry, and one for each member more that it changed.
func (e *shownEntry) rows() [][]string {
	what, ok := verbs[e.Type]
	if !ok {
		what = string(e.Type)
	}
	first := []string{
		e.RecordedAt.Local().
			Format(time.DateTime),
		what,
		e.TaskID[max(0, len(e.TaskID)-shownID):],
		"",
		"",
		e.Actor,
		e.RequestID,
	}
	var rows [][]string
	for _, member := range []string{"title", "description", "is_completed", "deleted"} {
		c, changed := e.Changes[member]
		if !changed || c.From == nil && (c.To == nil || c.To == false) {
			continue
		}
		row := []string{"", member, "", cell(c.From), cell(c.To), "", ""}
		if rows == nil {
			copy(first[flexible:], row[flexible:flexible+2])
			row = first
		}
		rows = append(rows, row)
	}
	if rows == nil {
		rows = [][]string{first}
	}
	for _, row := range rows {
		for i := range row {
			row[i] = harmless(row[i])
		}
	}
	return rows
}

// cell is a value of a task's member.
func cell(value any) string {
	switch value {
	case nil:
		return ""
	case "":
		return `""`
	}
	return fmt.Sprint(value)
}

// harmless writes out what a terminal would obey, or not show: control characters, those that change the direction of
// writing, blanks that are none. What joins emoji into one stays.
func harmless(s string) string {
	var b strings.Builder
	for _, r := range s {
		const joiner = '\u200D'
		switch {
		case unicode.IsPrint(r), r == joiner:
			b.WriteRune(r)
		case unicode.Is(unicode.Zs, r):
			b.WriteByte(' ')
		default:
			quoted := fmt.Sprintf("%q", r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}

// fit makes columns as wide as their cells and then, on a terminal, the widest of the flexible ones narrower until all
// fit in.
func (t *table) fit(rows [][]string) {
	t.widths = make([]int, len(heading))
	total := len(gap) * (len(heading) - 1)
	for i := range t.widths {
		for _, row := range rows {
			t.widths[i] = max(t.widths[i], uniseg.StringWidth(row[i]))
		}
		total += t.widths[i]
	}
	for ; t.width > 0 && total > t.width; total-- {
		widest := flexible
		for i := flexible; i < len(t.widths); i++ {
			if t.widths[i] > t.widths[widest] {
				widest = i
			}
		}
		if t.widths[widest] == leastCell {
			return
		}
		t.widths[widest]--
	}
}

func (t *table) line(row []string) string {
	var b strings.Builder
	for i, text := range row {
		if t.width > 0 {
			text = cut(text, t.widths[i])
		}
		b.WriteString(text)
		if i < len(row)-1 {
			b.WriteString(strings.Repeat(" ", max(0, t.widths[i]-uniseg.StringWidth(text))) + gap)
		}
	}
	return strings.TrimRight(b.String(), " ") + "\n"
}

// cut shortens a text to a width, between what people take for characters.
func cut(text string, width int) string {
	if uniseg.StringWidth(text) <= width {
		return text
	}
	var b strings.Builder
	left, rest, state := width-1, text, -1
	for {
		var cluster string
		var wide int
		cluster, rest, wide, state = uniseg.FirstGraphemeClusterInString(rest, state)
		if left -= wide; left < 0 {
			return b.String() + "…"
		}
		b.WriteString(cluster)
	}
}
