package main

import (
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"time"
)

// comparison is the report of the product beside the rival.
type comparison struct {
	Machine    string            `json:"machine"`
	PostgreSQL string            `json:"postgresql"`
	Rounds     int               `json:"rounds"`
	Duration   time.Duration     `json:"turn_ns"`
	Sides      []string          `json:"sides"`
	Cells      []cellReport      `json:"cells"`
	Memory     map[string]memory `json:"memory"`
}

// cellReport is a workload at a number of connections. Ratios are of the sides' rates, the first to the second; Target
// is what the median should be at least, 0 where nothing is asked.
type cellReport struct {
	Workload    string       `json:"workload"`
	Connections int          `json:"connections"`
	Ratio       float64      `json:"ratio"`
	Least       float64      `json:"ratio_min"`
	Most        float64      `json:"ratio_max"`
	Target      float64      `json:"target,omitempty"`
	Sides       []sideReport `json:"sides"`
}

// sideReport is of all rounds: the median rate, latencies in milliseconds, and processor time in microseconds a
// request, 0 where that is not known.
type sideReport struct {
	Requests    int64            `json:"requests"`
	Rate        float64          `json:"requests_per_second"`
	P50         float64          `json:"p50_ms"`
	P95         float64          `json:"p95_ms"`
	P99         float64          `json:"p99_ms"`
	ServerCPU   float64          `json:"server_cpu_us"`
	PostgresCPU float64          `json:"postgres_cpu_us"`
	Errors      map[string]int64 `json:"errors"`
}

func (s *stand) report(o *options, cells []*cell) *comparison {
	r := &comparison{
		Machine:    fmt.Sprintf("%d CPUs, %s", runtime.NumCPU(), runtime.Version()),
		PostgreSQL: s.version,
		Rounds:     o.Rounds,
		Duration:   o.Duration,
		Memory:     map[string]memory{},
	}
	for _, side := range s.sides {
		r.Sides = append(r.Sides, side.name)
		// Without /proc it stays out of the report.
		if m, err := readMemory(s.proc, side.program.pid()); err == nil {
			r.Memory[side.name] = m
		}
	}
	for _, c := range cells {
		if len(c.rounds) > 0 {
			r.Cells = append(r.Cells, c.report(o))
		}
	}
	return r
}

func (c *cell) report(o *options) cellReport {
	var ratios []float64
	for _, turns := range c.rounds {
		ratios = append(ratios, ratio(turns))
	}
	r := cellReport{
		Workload: c.workload.name, Connections: c.connections,
		Ratio: median(ratios), Least: slices.Min(ratios), Most: slices.Max(ratios),
		Sides: []sideReport{c.side(0), c.side(1)},
	}
	if o.Against == "" {
		r.Target = c.workload.targets[c.connections]
	}
	return r
}

func (c *cell) side(i int) sideReport {
	total := newTally()
	var (
		rates []float64
		used  usage
	)
	for _, turns := range c.rounds {
		total.merge(turns[i].total)
		rates = append(rates, turns[i].rate)
		used.server += turns[i].used.server
		used.postgres += turns[i].used.postgres
	}
	n := total.latency.TotalCount()
	each := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(max(n, 1)) }
	return sideReport{
		Requests: n, Rate: median(rates),
		P50: total.quantile(50), P95: total.quantile(95), P99: total.quantile(99),
		ServerCPU: each(used.server), PostgresCPU: each(used.postgres),
		Errors: total.errors,
	}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

func (r *comparison) broken() bool {
	return slices.ContainsFunc(r.Cells, func(c cellReport) bool {
		return len(c.Sides[0].Errors) > 0 || len(c.Sides[1].Errors) > 0
	})
}

func (o *options) printComparison(w io.Writer, r *comparison) error {
	if o.JSON {
		return printJSON(w, r)
	}
	lines := []string{
		fmt.Sprintf("%s / %s, on PostgreSQL %s with default durability; %s; %d rounds, %s a turn.",
			r.Sides[0], r.Sides[1], r.PostgreSQL, r.Machine, r.Rounds, r.Duration),
		"CPU is that of the server and of PostgreSQL, in µs a request.",
		"",
	}
	lines = append(lines, r.details()...)
	lines = append(lines, "")
	for _, name := range slices.Sorted(maps.Keys(r.Memory)) {
		m := r.Memory[name]
		lines = append(lines,
			fmt.Sprintf("Memory of the %s: %d MB at most, %d MB at the end.", name, m.Peak>>20, m.Now>>20))
	}
	lines = append(append(lines, ""), r.ratios(o.Connections)...)
	return printLines(w, lines)
}

func (r *comparison) details() []string {
	lines := []string{
		"| workload | connections | ratio | min–max | req/s | p50 ms | p95 ms | p99 ms " +
			"| CPU server | CPU PostgreSQL | errors |",
		"|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
	}
	for _, c := range r.Cells {
		both := func(format string, of func(sideReport) float64) string {
			return fmt.Sprintf(format+" / "+format, of(c.Sides[0]), of(c.Sides[1]))
		}
		lines = append(lines, fmt.Sprintf("| %s | %d | %.2f | %.2f–%.2f | %s | %s | %s | %s | %s | %s | %s / %s |",
			c.Workload, c.Connections, c.Ratio, c.Least, c.Most,
			both("%.0f", func(s sideReport) float64 { return s.Rate }),
			both("%.2f", func(s sideReport) float64 { return s.P50 }),
			both("%.2f", func(s sideReport) float64 { return s.P95 }),
			both("%.2f", func(s sideReport) float64 { return s.P99 }),
			both("%.0f", func(s sideReport) float64 { return s.ServerCPU }),
			both("%.0f", func(s sideReport) float64 { return s.PostgresCPU }),
			errorCell(c.Sides[0].Errors), errorCell(c.Sides[1].Errors)))
	}
	return lines
}

// ratios is a line a workload, with what each ratio should be at least beside it.
func (r *comparison) ratios(connections []int) []string {
	heading, rule := "| "+r.Sides[0]+" / "+r.Sides[1]+" |", "|---|"
	for _, n := range connections {
		heading += fmt.Sprintf(" C = %d |", n)
		rule += "---:|"
	}
	lines := []string{heading, rule}
	for _, w := range workloads {
		cells := map[int]string{}
		for _, c := range r.Cells {
			if c.Workload == w.name {
				cells[c.Connections] = c.ratioCell()
			}
		}
		if len(cells) == 0 {
			continue
		}
		line := "| " + w.title + " |"
		for _, n := range connections {
			line += " " + cells[n] + " |"
		}
		lines = append(lines, line)
	}
	return lines
}

// ratioCell is like "1.34 ≥ 1.2" or, where the target is missed, "**0.71 < 0.8**".
func (c cellReport) ratioCell() string {
	switch {
	case c.Target == 0:
		return fmt.Sprintf("%.2f", c.Ratio)
	case c.Ratio >= c.Target:
		return fmt.Sprintf("%.2f ≥ %.1f", c.Ratio, c.Target)
	default:
		return fmt.Sprintf("**%.2f < %.1f**", c.Ratio, c.Target)
	}
}
