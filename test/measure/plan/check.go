package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
)

// measurement is one line of what test/measure/scaling measures on a cluster; other fields
// do not matter here. All times are in seconds, and count from the load's start.
type measurement struct {
	Variant string    // only asDeployed is a ScaledJob that this model knows
	Load    string    // its name
	Sent    []float64 // when each message was sent, in order
	Work    float64   // of each message
	Claim   float64   // how much longer than usual the worker needed before its claim
	Poll    float64   // pollingInterval
	Max     int64     // maxReplicaCount

	// What follows is compared where it is there.
	FirstPod   *float64 // when the first Job's pod was seen: KEDA had just looked
	Pods       *float64 // one for each Job
	Stored     *float64 // when the last message was claimed
	Done       *float64
	WaitMedian *float64 // from sent to claimed
	Wait95     *float64
	WaitMax    *float64
}

const asDeployed = "as-deployed"

// The time until all is done may be off by a tenth, the number of Jobs by nothing.
// Waits of a few seconds are shown only: one pod that starts a second later than
// another is more than a tenth of them.
const tolerance = 0.1

// check predicts measured runs with the cluster's parameters, prints both, and
// returns an error if one is off.
func check(s system, file string, out io.Writer) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("-check: %w", err)
	}
	var runs []measurement
	for d := json.NewDecoder(bytes.NewReader(content)); ; {
		var m measurement
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("-check %s: %w", file, err)
		}
		if m.Variant != "" && m.Variant != asDeployed {
			continue
		}
		if len(m.Sent) == 0 || !slices.IsSorted(m.Sent) || m.Work <= 0 || m.Poll <= 0 || m.Max <= 0 {
			return fmt.Errorf("-check %s: a run of %q needs sent, in order, and work, poll and max: JSON=… of make scaling writes them", file, m.Load)
		}
		runs = append(runs, m)
	}
	if len(runs) == 0 {
		return fmt.Errorf("-check %s: it holds no run of the ScaledJob as it is deployed", file)
	}
	fmt.Fprintf(out, "Predicted / measured. The cluster: %s.\n\n", s.cluster())
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "LOAD\tFIRST POD\tJOBS\tALL STORED\tALL DONE\tWAIT: MEDIAN\t95 %\tMAX")
	var problems []error
	for _, m := range runs {
		problems = append(problems, m.compare(s, t))
	}
	t.Flush()
	if err := errors.Join(problems...); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nAs many Jobs as measured, and all done within %.0f %% of the time.\n", tolerance*100)
	return nil
}

// compare prints a line. Where FirstPod tells when KEDA looked, the prediction is
// one number; otherwise it is what lies between the phases.
func (m measurement) compare(s system, out io.Writer) error {
	s.poll, s.strategy.MaxReplicas = m.Poll, m.Max
	s.start += m.Claim
	l := load{m.Sent, slices.Repeat([]float64{m.Work}, len(m.Sent))}
	all, first := phases(s, l), "?"
	if m.FirstPod != nil {
		all, first = results{simulate(s, l, *m.FirstPod)}, fmt.Sprintf("%.1f", *m.FirstPod)
	}
	fmt.Fprintf(out, "%s\t%s", m.Load, first)
	var problems []error
	for _, c := range []struct {
		name      string
		predicted func(result) float64
		measured  *float64
		tolerance float64 // as a share of what was measured; no promise when negative
	}{
		{"Jobs", jobs, m.Pods, 0},
		{"all stored", claimed, m.Stored, -1},
		{"all done", done, m.Done, tolerance},
		{"wait, median", wait(0.5), m.WaitMedian, -1},
		{"wait, 95 %", wait(0.95), m.Wait95, -1},
		{"wait, max", wait(1), m.WaitMax, -1},
	} {
		from, to := all.span(c.predicted)
		text := fmt.Sprintf("%.3g", from)
		if from < to {
			text += fmt.Sprintf("–%.3g", to)
		}
		if c.measured != nil {
			measured := *c.measured
			text += fmt.Sprintf(" / %.3g", measured)
			if off := max(from-measured, measured-to); c.tolerance >= 0 && off > c.tolerance*measured {
				problems = append(problems, fmt.Errorf("%s, %s: %s", m.Load, c.name, text))
				text += " !"
			}
		}
		fmt.Fprint(out, "\t", text)
	}
	fmt.Fprintln(out)
	return errors.Join(problems...)
}
