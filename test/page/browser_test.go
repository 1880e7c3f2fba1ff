//go:build page

package page_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"
)

// tab is a page in a headless Chromium.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	problems []string // what the browser's console says in red
}

// watch notes from the beginning what the policy forbids and whether a script from
// outside has run.
const watch = `
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => violations.push(e.violatedDirective + " " + e.sourceFile + ":" + e.lineNumber + " " + e.sample));
window.alert = () => violations.push("alert");
`

// openTab opens the page in a window of the given size, in dark or in light.
func openTab(t *testing.T, url string, width, height int64, scheme string) *tab {
	t.Helper()
	allocator, stop := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.DisableGPU)...)
	t.Cleanup(stop)
	return newTab(t, allocator, url, width, height, scheme)
}

// newTab opens the page in a browser of its own, or in that of another tab's context.
func newTab(t *testing.T, browser context.Context, url string, width, height int64, scheme string) *tab {
	t.Helper()
	ctx, end := chromedp.NewContext(browser)
	t.Cleanup(end)
	p := &tab{t: t, ctx: ctx}
	require.NoError(t, chromedp.Listen(ctx, func(event any) {
		p.mu.Lock()
		defer p.mu.Unlock()
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			p.problems = append(p.problems, e.ExceptionDetails.Text+" "+e.ExceptionDetails.Exception.Description)
		case *log.EventEntryAdded:
			if e.Entry.Level == log.EntryLevelError && e.Entry.Source != log.EntrySourceNetwork {
				p.problems = append(p.problems, e.Entry.Text)
			}
		}
	}))
	call(p, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: watch})
	call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	p.do(chromedp.EmulateViewport(width, height), chromedp.Navigate(url))
	p.becomes("connection.textContent", "live")
	return p
}

func call[P, R any](p *tab, command cdp.Command[P, R], parameters P) {
	p.t.Helper()
	_, err := chromedp.Call(p.ctx, command, parameters)
	require.NoError(p.t, err)
}

// do acts, for no longer than our patience.
func (p *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	require.NoError(p.t, chromedp.Do(ctx, steps...))
}

func run[T any](p *tab, action chromedp.Action[T]) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	value, err := chromedp.Run(ctx, action)
	require.NoError(p.t, err)
	return value
}

// show brings a tab to the front, as a user does who chooses it.
func (p *tab) show() {
	p.t.Helper()
	call(p, page.BringToFront, cdp.Empty{})
}

func (p *tab) click(selector string) {
	p.t.Helper()
	p.do(chromedp.Click(chromedp.CSS(selector)))
}

// set puts a text into a field.
func (p *tab) set(selector, text string) {
	p.t.Helper()
	p.do(chromedp.Evaluate[chromedp.Void](`document.querySelector(`+quote(selector)+`).select()`), chromedp.SendKeys(chromedp.CSS(selector), text))
}

// js evaluates an expression to what JSON makes of it.
func js[T any](p *tab, expression string) (value T) {
	p.t.Helper()
	text := run(p, chromedp.Evaluate[string](`JSON.stringify(`+expression+`) ?? "null"`))
	require.NoError(p.t, json.Unmarshal([]byte(text), &value))
	return value
}

// becomes waits until an expression has a value.
func (p *tab) becomes(expression string, want any) {
	p.t.Helper()
	body, err := json.Marshal(want)
	require.NoError(p.t, err)
	p.until(`JSON.stringify(`+expression+`) === JSON.stringify(`+string(body)+`)`, expression)
}

// until waits for a condition, and says what an expression is when it waits in vain.
func (p *tab) until(condition, expression string) {
	p.t.Helper()
	if !eventually(func() bool { return js[bool](p, `!!(`+condition+`)`) }) {
		p.picture("failed", false)
		require.FailNow(p.t, "in vain", "%s\n%v\n%v", condition, js[any](p, expression), js[any](p, "document.body.innerText.slice(0, 1500)"))
	}
}

func (p *tab) text(selector string) string {
	p.t.Helper()
	return js[string](p, `document.querySelector(`+quote(selector)+`).textContent`)
}

func quote(text string) string {
	body, _ := json.Marshal(text) // a string always can
	return string(body)
}

// showsBars waits until the timeline shows so many bars of a phase.
func (p *tab) showsBars(phase string, want int) {
	p.t.Helper()
	require.True(p.t, eventually(func() bool { return p.bars(phase) == want }), "%d bars are %s, not %d", p.bars(phase), phase, want)
}

// bars counts those with the colour of a phase in the picture itself, from top to
// bottom.
func (p *tab) bars(phase string) int {
	p.t.Helper()
	return js[int](p, `((name) => {
		const probe = document.createElement("canvas").getContext("2d");
		probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--" + name);
		probe.fillRect(0, 0, 1, 1);
		const [r, g, b] = probe.getImageData(0, 0, 1, 1).data;
		const canvas = document.querySelector("#timeline canvas"), { width, height } = canvas;
		const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
		let runs = 0, before = false;
		for (let y = 0; y < height; y++) {
			let found = 0;
			for (let x = 0; x < width; x++) {
				const i = 4 * (y * width + x);
				if (data[i] === r && data[i + 1] === g && data[i + 2] === b) found++;
			}
			if (found > 2 && !before) runs++;
			before = found > 2;
		}
		return runs;
	})(`+quote(phase)+`)`)
}

// picture saves what a user sees, or the whole document, into the folder PICTURES.
func (p *tab) picture(name string, whole bool) {
	p.t.Helper()
	dir := os.Getenv("PICTURES")
	if dir == "" {
		return
	}
	action := chromedp.CaptureScreenshot()
	if whole {
		action = chromedp.FullScreenshot(100)
	}
	png := run(p, action)
	require.NoError(p.t, os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644))
}

// requireClean says that nothing was refused by the policy and nothing failed.
func (p *tab) requireClean() {
	p.t.Helper()
	require.Empty(p.t, js[[]string](p, "violations"))
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Empty(p.t, strings.Join(p.problems, "\n"))
}
