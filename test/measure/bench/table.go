package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// row is one line of the results.
type row struct {
	Name   string               // with the unit
	Goal   goal                 // for the ratio of new to raw, or for new if there is no raw
	Values map[string][]float64 // by subject, one for each round
}

// goal is a bound for a median. A zero is no bound.
type goal struct {
	AtLeast float64 `json:",omitempty"`
	AtMost  float64 `json:",omitempty"`
}

// comparison is what several subjects measure in turns, a value for each row.
type comparison struct {
	rows  []*row
	turns []turn
}

type turn struct {
	subject string
	measure func(context.Context) ([]float64, error)
}

func newRow(name string, g goal) *row {
	return &row{Name: name, Goal: g, Values: map[string][]float64{}}
}

// judge says what the goal is, and whether it is reached.
func (g goal) judge(value float64) string {
	text, reached := "", true
	switch {
	case g.AtLeast > 0:
		text, reached = fmt.Sprintf("≥ %g", g.AtLeast), value >= g.AtLeast
	case g.AtMost > 0:
		text, reached = fmt.Sprintf("≤ %g", g.AtMost), value <= g.AtMost
	}
	if !reached {
		text += ", **missed**"
	}
	return text
}

// print writes the results as a table of Markdown.
func (b *bench) print(out io.Writer) {
	fmt.Fprintf(out, "%s, commits %v, %s, RabbitMQ %s. Median of %d rounds (least–greatest).\n\n",
		b.Date.Format(time.DateOnly), b.Commits, b.Machine, b.RabbitMQ, b.Rounds)
	head, line := "| | raw | new | new / raw | goal |", "| --- | ---: | ---: | ---: | --- |"
	if len(b.builds) > 1 {
		head, line = head+" old | old / raw | new / old |", line+" ---: | ---: | ---: |"
	}
	fmt.Fprintln(out, head+"\n"+line)
	for _, r := range b.Rows {
		judged := ratios(r.Values[current], r.Values[raw])
		if len(judged) == 0 {
			judged = r.Values[current]
		}
		cells := []string{r.Name, r.median(raw), r.median(current), r.ratio(current, raw), r.Goal.judge(median(judged))}
		if len(b.builds) > 1 {
			cells = append(cells, r.median(older), r.ratio(older, raw), r.ratio(current, older))
		}
		fmt.Fprintf(out, "| %s |\n", strings.Join(cells, " | "))
	}
}

func (r *row) median(subject string) string {
	if len(r.Values[subject]) == 0 {
		return ""
	}
	return number(median(r.Values[subject]))
}

// ratio shows the median of the ratios with the least and the greatest.
func (r *row) ratio(of, to string) string {
	values := ratios(r.Values[of], r.Values[to])
	if len(values) == 0 {
		return ""
	}
	return fmt.Sprintf("**%.2f** (%.2f–%.2f)", median(values), slices.Min(values), slices.Max(values))
}

// ratios divides round by round. There are none if one of the two was not measured.
func ratios(a, b []float64) []float64 {
	var all []float64
	for i := range min(len(a), len(b)) {
		all = append(all, a[i]/b[i])
	}
	return all
}

// median of an even number of values is the mean of the two in the middle.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return 0
	}
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func number(value float64) string {
	if value >= 1000 {
		return fmt.Sprintf("%.0f", value)
	}
	return fmt.Sprintf("%.1f", value)
}
