package query

import (
	"cmp"
	"slices"
	"strings"

	"taskledger/events"
)

// picker makes a page of tasks that come in any order, as the SQL of the filter does of those in the read model.
type picker struct {
	TaskFilter
	page   Page
	search string
	most   int // one more than the page has tells whether there is a next one
	found  []placed
}

// placed is a task with its place in a list.
type placed struct {
	Place
	task *events.Task
}

func newPicker(f TaskFilter, page Page) *picker {
	return &picker{TaskFilter: f, page: page, search: events.FoldCase(f.Search), most: page.Limit + 1}
}

// compare orders two places of one list.
func (o Order) compare(a, b Place) int {
	order := cmp.Or(a.Time.Compare(b.Time), slices.Compare(a.Title, b.Title), slices.Compare(a.ID[:], b.ID[:]))
	if o == Descending {
		return -order
	}
	return order
}

// add takes a live task, if it belongs on the page as far as is known.
func (p *picker) add(t *events.Task) {
	if p.Status == StatusPending && t.Completed || p.Status == StatusCompleted && !t.Completed {
		return
	}
	place := p.placeOf(t)
	switch {
	case p.Search != "" && !strings.Contains(events.SearchText(t.Title, t.Description), p.search):
		return
	case p.page.After != nil && p.Order.compare(place, *p.page.After) <= 0:
		return
	}
	if p.found = append(p.found, placed{place, t}); p.page.Limit > 0 && len(p.found) >= 2*p.most {
		p.sort()
	}
}

// sort leaves the first of what was found, as many as are needed.
func (p *picker) sort() {
	slices.SortFunc(p.found, func(a, b placed) int { return p.Order.compare(a.Place, b.Place) })
	if p.page.Limit > 0 && len(p.found) > p.most {
		p.found = slices.Delete(p.found, p.most, len(p.found))
	}
}

// list is the page, in JSON.
func (p *picker) list(a *Answer) []byte {
	p.sort()
	if p.page.Limit > 0 && len(p.found) == p.most {
		p.found = p.found[:p.page.Limit]
		a.Next = &p.found[p.page.Limit-1].Place
	}
	size := 2
	for _, t := range p.found {
		size += t.task.Bytes() + len(separator)
	}
	body := append(make([]byte, 0, size), '[')
	for i, t := range p.found {
		if i > 0 {
			body = append(body, separator...)
		}
		body = t.task.AppendJSON(body)
	}
	return append(body, ']')
}

// pick answers with a page of all live tasks.
func (f TaskFilter) pick(live liveTasks, page Page, a *Answer) error {
	p := newPicker(f, page)
	for _, t := range live {
		p.add(t)
	}
	a.Body = p.list(a)
	return nil
}
