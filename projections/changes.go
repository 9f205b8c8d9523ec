package projections

import (
	"strconv"

	"taskledger/events"
)

// appendChanges appends what is different between two states of a task: for each member that changed, under its name in
// JSON and in the order of the Task, its value before and after. Before a task is created all of it is null.
func appendChanges(b []byte, before, after events.Task) []byte {
	created := before.Version == 0 && after.Version > 0
	b = append(b, '{')
	if created || before.Title != after.Title {
		b = append(b, `"title":{"from":`...)
		b = appendFrom(b, created, &before.Title)
		b = append(b, `,"to":`...)
		b = append(events.AppendText(b, after.Title), `},`...)
	}
	if !sameText(before.Description, after.Description) {
		b = append(b, `"description":{"from":`...)
		b = appendFrom(b, created, before.Description)
		b = append(b, `,"to":`...)
		b = append(appendFrom(b, false, after.Description), `},`...)
	}
	if created || before.Completed != after.Completed {
		b = append(b, `"is_completed":`...)
		b = appendSwitch(b, created, before.Completed, after.Completed)
	}
	if before, after := before.DeletedAt != nil, after.DeletedAt != nil; before != after {
		b = append(b, `"deleted":`...)
		b = appendSwitch(b, false, before, after)
	}
	if last := len(b) - 1; b[last] == ',' {
		b = b[:last]
	}
	return append(b, '}')
}

// appendFrom appends a text, or null.
func appendFrom(b []byte, none bool, text *string) []byte {
	if none || text == nil {
		return append(b, `null`...)
	}
	return events.AppendText(b, *text)
}

func appendSwitch(b []byte, none, from, to bool) []byte {
	b = append(b, `{"from":`...)
	if none {
		b = append(b, `null`...)
	} else {
		b = strconv.AppendBool(b, from)
	}
	b = append(b, `,"to":`...)
	return append(strconv.AppendBool(b, to), `},`...)
}

func sameText(a, b *string) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
