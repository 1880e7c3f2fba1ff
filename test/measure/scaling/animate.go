package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	speed     = 8.0  // times as fast as it was
	hold      = 24.0 // seconds of the run, as which the end stays
	move      = 1.6  // seconds of the run that a message is on its way
	panel     = 148  // height of one result
	places    = 10   // for Jobs at a time: two rows
	panelWide = 800
)

// palette is a picture's colours.
type palette struct{ name, back, text, faint, waiting, starting, working, done string }

var palettes = []palette{
	{"light", "#ffffff", "#1f2328", "#d1d9e0", "#d4950c", "#c8553d", "#2a6f97", "#2da44e"},
	{"dark", "#0d1117", "#e6edf3", "#3d444d", "#f0c05a", "#e8836b", "#4c9fd0", "#3fb950"},
}

// animate draws the results in a file one below the other, on one clock: messages
// that wait, Jobs that start and work, records that are done.
func animate(file, folder string) error {
	if folder == "" {
		return errors.New("-animate needs -pictures, a folder to draw into")
	}
	all, err := read(file)
	if err != nil {
		return fmt.Errorf("-animate: %w", err)
	}
	if len(all) == 0 || slices.ContainsFunc(all, func(s summary) bool { return len(s.Ways) == 0 }) {
		return fmt.Errorf("-animate %s: it needs results with \"ways\": measure again with -json", file)
	}
	all = typical(all)
	if len(all) == 0 {
		return fmt.Errorf("-animate %s: it has no run of %s", file, asFound)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for _, colours := range palettes {
		name := filepath.Join(folder, all[0].Load+"-"+colours.name+".svg")
		if err := os.WriteFile(name, []byte(film(all, colours)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// typical returns, for each variant that has a title, the run that is the median by its end,
// of an even number the faster of the two in the middle, for all variants alike.
func typical(all []summary) (chosen []summary) {
	for _, t := range titles {
		runs := slices.DeleteFunc(slices.Clone(all), func(s summary) bool { return s.Variant != t.variant })
		slices.SortFunc(runs, func(a, b summary) int { return cmp.Compare(a.Done, b.Done) })
		if len(runs) > 0 {
			chosen = append(chosen, runs[(len(runs)-1)/2])
		}
	}
	return chosen
}

// movie writes elements and the keyframes that go with them. An element's own
// attributes are its last state, for readers that want no motion.
type movie struct {
	elements, styles strings.Builder
	length           float64 // of the run, with the hold
	frames           int
}

type frame struct {
	at    float64
	style string
}

// add adds an element, a format with one %s for its class.
func (m *movie) add(element, timing string, frames ...frame) {
	m.frames++
	class := fmt.Sprintf("k%d", m.frames)
	fmt.Fprintf(&m.styles, "@keyframes %s{", class)
	for _, f := range frames {
		fmt.Fprintf(&m.styles, "%.2f%%{%s}", min(100, max(0, f.at)/m.length*100), f.style)
	}
	fmt.Fprintf(&m.styles, "}.%s{animation:%s %.1fs %s infinite}\n", class, class, m.length/speed, timing)
	fmt.Fprintf(&m.elements, element+"\n", class)
}

func shown(from, to float64) []frame {
	return []frame{{0, "opacity:0"}, {from, "opacity:1"}, {to, "opacity:0"}}
}

func film(all []summary, c palette) string {
	end := 0.0
	for _, s := range all {
		end = max(end, s.Done)
	}
	m := &movie{length: end + hold}
	for i, s := range all {
		m.panel(s, c, float64(i*panel))
	}
	// the clock
	const left, right = 24.0, panelWide - 24.0
	y := float64(len(all)*panel) + 12
	x := func(t float64) float64 { return left + t/end*(right-left) }
	fmt.Fprintf(&m.elements, `<path d="M%.0f %.0fH%.0f" stroke="%s" stroke-width="4"/>`+"\n", left, y, right, c.faint)
	for t := 0.0; t <= end; t += 20 {
		fmt.Fprintf(&m.elements, `<text x="%.1f" y="%.0f" text-anchor="middle" font-size="12">%.0f s</text>`+"\n", x(t), y+20, t)
	}
	m.add(fmt.Sprintf(`<rect class="%%s" x="%.0f" y="%.0f" width="%.0f" height="4" fill="%s" style="transform-origin:%.0fpx 0"/>`, left, y-2, right-left, c.working, left),
		"linear", frame{0, "transform:scaleX(0)"}, frame{end, "transform:scaleX(1)"}, frame{m.length, "transform:scaleX(1)"})
	height := y + 30
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %.0f" font-family="sans-serif" font-size="14" fill="%s">
<style>
%s@media (prefers-reduced-motion:reduce){*{animation:none!important}}
</style>
<rect width="100%%" height="100%%" fill="%s"/>
%s</svg>
`, panelWide, height, c.text, m.styles.String(), c.back, m.elements.String())
}

// titles are what the picture calls the variants, in its order.
var titles = []struct{ variant, text string }{{asFound, "This project"}, {"tutorial", "The usual manifest and worker"}}

func title(variant string) string {
	i := slices.IndexFunc(titles, func(t struct{ variant, text string }) bool { return t.variant == variant })
	return titles[i].text
}

func (m *movie) panel(s summary, c palette, top float64) {
	const (
		queueX, jobsX, doneX  = 24.0, 200.0, 646.0
		cell, jobWide, jobTop = 26.0, 76.0, 56.0
	)
	dot := func(x float64, i int) (float64, float64) {
		return x + 13 + float64(i%5)*cell, top + jobTop + 13 + float64(i/5)*cell
	}
	e := &m.elements
	fmt.Fprintf(e, `<text x="%.0f" y="%.0f" font-weight="bold" font-size="16">%s</text>`, queueX, top+24, title(s.Variant))
	for _, label := range []struct {
		x          float64
		text, fill string
	}{{queueX, "waiting", c.waiting}, {jobsX, fmt.Sprintf("Jobs, at most %d at a time", s.Max), c.working}, {doneX, "done", c.done}} {
		fmt.Fprintf(e, `<text x="%.0f" y="%.0f" fill="%s">%s</text>`, label.x, top+46, label.fill, label.text)
	}
	fmt.Fprintln(e)
	m.add(fmt.Sprintf(`<text class="%%s" x="%d" y="%.0f" text-anchor="end" font-size="16" font-weight="bold" fill="%s">all done after %.0f s, %d Jobs%s</text>`,
		panelWide-24, top+24, c.done, s.Done, s.Pods, map[bool]string{true: fmt.Sprintf(", %d for nothing", s.Empty)}[s.Empty > 0]),
		"step-end", frame{0, "opacity:0"}, frame{s.Done, "opacity:1"}, frame{m.length, "opacity:1"})

	// a place for each Job, from its pod's creation to its end
	var free [places]float64
	type place struct{ x, y float64 }
	at := make([]place, len(s.Lives))
	order := make([]int, len(s.Lives))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(s.Lives[a][0], s.Lives[b][0]) })
	for _, i := range order {
		k := slices.IndexFunc(free[:], func(t float64) bool { return t <= s.Lives[i][0] })
		if k < 0 { // seen to end a moment after the next one began
			k = slices.Index(free[:], slices.Min(free[:]))
		}
		free[k] = s.Lives[i][1]
		at[i] = place{jobsX + float64(k%5)*(jobWide+8), top + jobTop + float64(k/5)*42}
		m.add(fmt.Sprintf(`<rect class="%%s" x="%.1f" y="%.1f" width="%.0f" height="34" rx="5" fill="none" stroke="%s" stroke-width="2" opacity="0"/>`,
			at[i].x, at[i].y, jobWide, c.starting), "step-end", shown(s.Lives[i][0], s.Lives[i][1])...)
	}
	for i, w := range s.Ways {
		sent, stored, finished := w[0], w[1], w[2]
		qx, qy := dot(queueX, i)
		dx, dy := dot(doneX, i)
		jx, jy := qx, qy
		if pod := int(w[3]); pod >= 0 {
			jx, jy = at[pod].x+jobWide/2, at[pod].y+17
			// how much of its work is done
			m.add(fmt.Sprintf(`<rect class="%%s" x="%.1f" y="%.1f" width="%.0f" height="34" rx="5" fill="%s" style="transform-origin:%.1fpx 0" opacity="0"/>`,
				at[pod].x, at[pod].y, jobWide, c.working, at[pod].x), "linear",
				frame{0, "opacity:0;transform:scaleX(0)"}, frame{stored, "opacity:0;transform:scaleX(0)"}, frame{stored + 0.1, "opacity:1;transform:scaleX(0)"},
				frame{finished, "opacity:1;transform:scaleX(1)"}, frame{finished + 0.1, "opacity:0;transform:scaleX(1)"}, frame{m.length, "opacity:0;transform:scaleX(1)"})
		}
		style := func(x, y float64, opacity int, fill string) string {
			return fmt.Sprintf("opacity:%d;fill:%s;transform:translate(%.1fpx,%.1fpx)", opacity, fill, x-dx, y-dy)
		}
		m.add(fmt.Sprintf(`<circle class="%%s" cx="%.1f" cy="%.1f" r="9" fill="%s"/>`, dx, dy, c.done), "linear",
			frame{0, style(qx, qy, 0, c.waiting)}, frame{sent, style(qx, qy, 0, c.waiting)}, frame{sent + 0.2, style(qx, qy, 1, c.waiting)},
			frame{max(sent+0.2, stored-move), style(qx, qy, 1, c.waiting)}, frame{stored, style(jx, jy, 1, c.waiting)}, frame{finished, style(jx, jy, 1, c.waiting)},
			frame{finished + move, style(dx, dy, 1, c.done)}, frame{m.length, style(dx, dy, 1, c.done)})
	}
}
