package admin

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// unit is how the values of a plot are written.
type unit func(float64) string

func perSecond(v float64) string { return number(v) + "/s" }

func amount(v float64) string { return number(v) }

func seconds(v float64) string {
	if v > 0 && v < 1 {
		return number(v*1000) + " ms"
	}
	return number(v) + " s"
}

// number has three digits that count.
func number(v float64) string {
	if v >= 1000 {
		return strconv.FormatFloat(math.Round(v), 'f', -1, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// The drawing area; the page stretches it to the room there is.
const (
	plotWidth  = 360
	plotHeight = 100
	plotMargin = 2 // so that a line at the edge is not cut
)

// tableEvery is what a row of a plot's table is about.
const tableEvery = 5 * time.Minute

// plotView is a plot as the page shows it.
type plotView struct {
	ID, Name, Top string
	Lines         []lineView
	Rows          []plotRow
}

type lineView struct {
	Name, Path, Now, Highest string
}

type plotRow struct {
	At     time.Time
	Values []string // the highest of each line
}

func viewOf(d drawing, number int, now time.Time) plotView {
	from := now.Add(-time.Hour)
	top := 0.0
	for _, s := range d.series {
		top = max(top, highestOf(s.points, from, now))
	}
	top = roundUp(top)
	view := plotView{ID: fmt.Sprintf("plot-%d", number), Name: d.name, Top: d.unit(top)}
	for _, s := range d.series {
		high := highestOf(s.points, from, now)
		view.Lines = append(view.Lines, lineView{
			Name: s.name, Path: pathOf(s.points, from, top), Now: d.show(latestOf(s.points)), Highest: d.show(high),
		})
	}
	for at := now.Truncate(tableEvery).Add(tableEvery - time.Hour); !at.After(now); at = at.Add(tableEvery) {
		row := plotRow{At: at}
		for _, s := range d.series {
			row.Values = append(row.Values, d.show(highestOf(s.points, at, at.Add(tableEvery))))
		}
		view.Rows = append(view.Rows, row)
	}
	return view
}

func (d drawing) show(value float64) string {
	if math.IsNaN(value) {
		return "–"
	}
	return d.unit(value)
}

// highestOf is the highest value in a span of time, NaN without any.
func highestOf(points []point, from, until time.Time) float64 {
	high := math.NaN()
	for _, p := range points {
		if !p.at.Before(from) && !p.at.After(until) && (math.IsNaN(high) || p.value > high) {
			high = p.value
		}
	}
	return high
}

func latestOf(points []point) float64 {
	if len(points) == 0 {
		return math.NaN()
	}
	return points[len(points)-1].value
}

// roundUp is the next 1, 2 or 5 with zeros; 1 for nothing.
func roundUp(v float64) float64 {
	if !(v > 0) {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(v)))
	for _, n := range []float64{1, 2, 5} {
		if v <= n*unit {
			return n * unit
		}
	}
	return 10 * unit
}

// pathOf draws the points as an SVG path, with a gap where there is no value, or where nobody took one. A point alone
// is a line without length, which round ends make a dot.
func pathOf(points []point, from time.Time, top float64) string {
	var b strings.Builder
	var last time.Time
	for _, p := range points {
		if math.IsNaN(p.value) {
			last = time.Time{}
			continue
		}
		x := plotMargin + p.at.Sub(from).Hours()*(plotWidth-2*plotMargin)
		y := plotHeight - plotMargin - min(max(p.value/top, 0), 1)*(plotHeight-2*plotMargin)
		if last.IsZero() || p.at.Sub(last) > 3*sampleEvery {
			fmt.Fprintf(&b, "M%.1f %.1fh0", x, y)
		} else {
			fmt.Fprintf(&b, "L%.1f %.1f", x, y)
		}
		last = p.at
	}
	return b.String()
}
