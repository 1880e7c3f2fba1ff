package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// compare draws the pods that there were over time, for all results of a load one
// below the other.
func compare(file, folder string) error {
	if folder == "" {
		return errors.New("-compare needs -pictures, a folder to draw into")
	}
	all, err := read(file)
	if err != nil {
		return fmt.Errorf("-compare: %w", err)
	}
	var order []string
	byLoad := map[string][]summary{}
	for _, s := range all {
		if byLoad[s.Load] == nil {
			order = append(order, s.Load)
		}
		byLoad[s.Load] = append(byLoad[s.Load], s)
	}
	for _, load := range order {
		if err := drawPods(filepath.Join(folder, load+"-compared.svg"), load, byLoad[load]); err != nil {
			return err
		}
	}
	return nil
}

// read returns the results that -json has saved.
func read(file string) (all []summary, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for d := json.NewDecoder(f); ; {
		var s summary
		switch err := d.Decode(&s); {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, s)
	}
}

func drawPods(file, load string, all []summary) error {
	const (
		left, top, right, bottom = 40, 30, 16, 34
		width, row, title        = 720, 110, 26
	)
	end, most := 0.0, 1
	for _, s := range all {
		end, most = max(end, s.Done), max(most, s.Max)
		for _, life := range s.Lives {
			end = max(end, life[1])
		}
	}
	height := row * len(all)
	x := func(t float64) float64 { return left + max(0, t)/end*width }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", left+width+right, top+height+bottom)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/><text x="%d" y="18" font-size="14">%s: %d messages; pods over time, and when all was done</text>`+"\n", left, load, all[0].Messages)
	step := math.Pow(10, math.Floor(math.Log10(end))) / 2
	for t := 0.0; t <= end; t += step {
		fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#ccc"/><text x="%.1f" y="%d" text-anchor="middle" fill="#444">%.0f s</text>`+"\n", x(t), top, top+height, x(t), top+height+18, t)
	}
	for i, s := range all {
		base := float64(top + (i+1)*row - 4)
		unit := float64(row-title-8) / float64(most)
		fmt.Fprintf(&b, `<path d="M%d %.1f`, left, base)
		for _, at := range changes(s.Lives) {
			fmt.Fprintf(&b, `H%.1fV%.1f`, x(at.time), base-unit*float64(at.pods))
		}
		fmt.Fprintf(&b, `" fill="%s"/><path d="M%d %.1fh%d" stroke="#444"/>`, working, left, base, width)
		fmt.Fprintf(&b, `<path d="M%.1f %.1fv%.1f" stroke="%s" stroke-width="2"/>`, x(s.Done), base, -unit*float64(most), starting)
		fmt.Fprintf(&b, `<text x="%d" y="%.1f">%s: done after %.0f s, %d pods, %.0f pod-seconds`, left+4, base-float64(row)+title-4, s.Variant, s.Done, s.Pods, s.PodSeconds)
		if s.Lost+s.Twice > 0 {
			fmt.Fprintf(&b, `, %d not done, %d twice`, s.Lost, s.Twice)
		}
		b.WriteString("</text>\n")
	}
	b.WriteString("</svg>\n")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(b.String()), 0o644)
}

type change struct {
	time float64
	pods int
}

// changes tells how many pods there were from when on.
func changes(lives [][2]float64) []change {
	var all []change
	for _, life := range lives {
		all = append(all, change{life[0], 1}, change{life[1], -1})
	}
	slices.SortFunc(all, func(a, b change) int { return cmp.Compare(a.time, b.time) })
	pods := 0
	for i, c := range all {
		pods += c.pods
		all[i].pods = pods
	}
	return all
}
