//go:build page

// Package page_test looks at complex-app's page as a user does: in a Chromium,
// with the programs, RabbitMQ and database of `make up`. PICTURES=folder keeps what
// it sees.
package page_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
)

func eventually(f func() bool) bool {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for deadline := time.After(patience); ; {
		if f() {
			return true
		}
		select {
		case <-ticker.C:
		case <-deadline:
			return false
		}
	}
}

const detail = `document.querySelector("#detail").textContent`

func TestFiveEvents(t *testing.T) {
	s := startSystem(t, 30*time.Second)
	wide := openTab(t, s.url, 1280, 1000, "light")
	narrow := openTab(t, s.url, 390, 844, "dark")
	wide.becomes(detail, "Nothing here: send some events.")

	wide.click("#send-burst")
	wide.becomes(`document.querySelector("#sent").textContent`, "5 of 5 accepted")
	wide.becomes(detail, "5 messages: 0 waiting, 5 in work, 0 retrying, 0 done, 0 failed.")
	wide.showsBars("working", 5) // at once
	require.Equal(t, "5", wide.text("#inWork"))
	require.Equal(t, "5", wide.text("#jobs"))
	require.Equal(t, "0", wide.text("#ready"))
	narrow.becomes(detail, "5 messages: 0 waiting, 5 in work, 0 retrying, 0 done, 0 failed.")
	narrow.showsBars("working", 5)

	wide.becomes(detail, "5 messages: 0 waiting, 0 in work, 0 retrying, 5 done, 0 failed.")
	wide.showsBars("done", 5)
	wide.showsBars("working", 0)
	wide.becomes(`[...document.querySelectorAll("#rows tr")].map((row) => row.cells[0].textContent + " " + row.cells[2].textContent).sort()`,
		[]string{"record1 done", "record2 done", "record3 done", "record4 done", "record5 done"})
	require.Equal(t, "0", wide.text("#jobs"), "then nothing")
	require.Equal(t, "5", wide.text("#records"))
	narrow.becomes(`document.querySelector("#records").textContent`, "5")
	require.Equal(t, 0, js[int](narrow, "document.documentElement.scrollWidth - document.documentElement.clientWidth"), "nothing sticks out")
	wide.picture("five-done-light-wide", true)
	narrow.picture("five-done-dark-narrow", true)

	// the filter
	wide.set("#filter", "record3")
	wide.becomes(`document.querySelectorAll("#rows tr").length`, 1)
	wide.becomes(`document.querySelector("#found").textContent`, "1 of 5")
	wide.requireClean()
	narrow.requireClean()
}

// A browser has six connections to a host, for all of its tabs together.
func TestSevenTabs(t *testing.T) {
	s := startSystem(t, 0)
	tabs := []*tab{openTab(t, s.url, 1280, 900, "light")}
	for len(tabs) < 7 {
		tabs = append(tabs, newTab(t, tabs[0].ctx, s.url, 1280, 900, "light"))
	}
	last := tabs[len(tabs)-1]
	last.click("#send-one")
	last.becomes("sent.textContent", "1 of 1 accepted")
	for _, p := range tabs {
		p.show()
		p.becomes(detail, "1 message: 0 waiting, 0 in work, 0 retrying, 1 done, 0 failed.")
		p.requireClean()
	}
}

func TestAJobThatIsKilled(t *testing.T) {
	s := startSystem(t, 15*time.Second)
	p := openTab(t, s.url, 1280, 900, "light")
	p.click("#send-one")
	p.becomes(detail, "1 message: 0 waiting, 1 in work, 0 retrying, 0 done, 0 failed.")
	p.showsBars("failed", 0)
	s.killJob()
	p.becomes(`rows.rows[0].cells[3].textContent`, "2")
	p.becomes(detail, "1 message: 0 waiting, 0 in work, 0 retrying, 1 done, 0 failed.")
	require.Positive(t, p.bars("failed"))
	p.showsBars("done", 1)
	p.picture("killed", false)

	// also for a page that is opened only now
	late := openTab(t, s.url, 1280, 900, "dark")
	late.becomes(detail, "1 message: 0 waiting, 0 in work, 0 retrying, 1 done, 0 failed.")
	require.True(t, eventually(func() bool { return late.bars("failed") > 0 }))
	late.showsBars("done", 1)
	late.requireClean()
	p.requireClean()
}

func TestANameThatIsAScript(t *testing.T) {
	s := startSystem(t, 0)
	p := openTab(t, s.url, 1000, 800, "light")
	evil := `<script>alert(1)</script><img src=x onerror=alert(2)>"'&{a|b}`
	p.set("#name", evil)
	p.set("#content", evil)
	p.click("#send-one")
	p.becomes(`[...document.querySelectorAll("#rows td")].slice(0, 3).map((cell) => cell.textContent)`, []string{evil, evil, "done"})
	s.bury(t, "<b>id</b>", evil)
	p.becomes(`document.querySelector("#dead-rows td")?.textContent`, evil)
	p.do(chromedp.Focus(chromedp.CSS("#timeline")), chromedp.KeyEvent(kb.ArrowDown))
	p.until(`document.querySelector("#detail").textContent.includes("<script>alert(1)")`, detail)
	require.Zero(t, js[int](p, `document.querySelectorAll("main img, main script, main b").length`))
	p.requireClean()
}

// They come within a second from another program, without ids and times, some of them twice.
func TestMoreDeadLettersThanAreShown(t *testing.T) {
	s := startSystem(t, 0)
	p := openTab(t, s.url, 1280, 900, "light")
	letters := make([]amqp.Publishing, 230)
	for i := range letters {
		letters[i].Body = fmt.Append(nil, "letter ", i/2)
	}
	s.publish(t, s.queue.DeadQueue(), letters...)
	p.becomes(`[dead.textContent, document.querySelectorAll("#dead-rows tr").length]`, []any{"230", 200})
	p.becomes(`document.querySelector("#dead-found").textContent`, "200 of 230. The next look shows others.")
	require.Zero(t, js[int](p, `document.querySelectorAll("#dead-rows button").length`), "none can be sent back alone")
	require.Equal(t, []string{"", "", "", "", ""}, js[[]string](p, `[...document.querySelector("#dead-rows tr").cells].slice(1).map((cell) => cell.textContent)`),
		"nobody knows why it died, after how many attempts, in which Job and when")
	p.becomes(`[inWork, jobs, records, ready].map((e) => e.textContent)`, []string{"–", "–", "0", "0"})
	p.becomes(detail, "Nothing here: send some events.")
	p.picture("many-dead-letters", true)

	s.publish(t, s.queue.DeadQueue(), amqp.Publishing{Body: []byte("one more")})
	p.becomes(`[dead.textContent, document.querySelectorAll("#dead-rows tr").length]`, []any{"231", 200})
	request, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, s.url+"/dead-letters", nil)
	require.NoError(t, err)
	answer, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, answer.StatusCode)
	require.NoError(t, answer.Body.Close())
	p.becomes(`[dead.textContent, inWork.textContent, document.querySelectorAll("#dead-rows tr").length]`, []any{"0", "0", 0})
	p.requireClean()
}

func TestServersGoAwayAndComeBack(t *testing.T) {
	s := startSystem(t, 0)
	p := openTab(t, s.url, 1280, 900, "light")
	require.True(t, js[bool](p, `document.querySelector("#banner").hidden`))

	s.rabbitmq.Kill()
	p.until(`document.querySelector("#banner").textContent.startsWith("RabbitMQ is down")`, `document.querySelector("#banner").textContent`)
	p.becomes(`[rabbitMQ, ready, dead, mongoDB].map((e) => e.textContent)`, []string{"down", "–", "–", "up"})
	p.click("#send-burst")
	p.until(`sent.textContent.startsWith("0 of 5 accepted; 5 refused: RabbitMQ is not available")`, `sent.textContent`)
	p.picture("rabbitmq-down", false)
	require.NoError(t, s.rabbitmq.Start(t.Context()))
	p.becomes(`[rabbitMQ, ready, banner.hidden]`, []any{map[string]any{}, map[string]any{}, true})
	p.becomes(`rabbitMQ.textContent`, "up")
	p.click("#send-again")
	p.becomes(`sent.textContent`, "5 of 5 accepted")
	p.becomes(detail, "5 messages: 0 waiting, 0 in work, 0 retrying, 5 done, 0 failed.")

	// complex-app itself
	s.app.Kill()
	p.until(`banner.textContent.startsWith("complex-app does not answer")`, "banner.textContent")
	s.startApp(t)
	p.becomes("banner.hidden", true)
	p.becomes("connection.textContent", "live")
	p.becomes(detail, "5 messages: 0 waiting, 0 in work, 0 retrying, 5 done, 0 failed.")

	s.mongodb.Close()
	p.until(`banner.textContent.startsWith("MongoDB is down")`, "banner.textContent")
	p.becomes(`mongoDB.textContent`, "down")
	p.click("#send-one")
	p.becomes(`sent.textContent`, "1 of 1 accepted")
	p.becomes(`ready.textContent`, "1")
	p.until(detail+`.includes("1 waiting")`, detail)
	p.requireClean()
}

// Nothing but a keyboard.
func TestKeyboard(t *testing.T) {
	s := startSystem(t, 0)
	p := openTab(t, s.url, 1280, 900, "light")
	press := func(keys ...string) {
		t.Helper()
		for _, k := range keys {
			p.do(chromedp.KeyEvent(k))
		}
	}
	// tab presses Tab until an element has the focus.
	tabTo := func(selector string) {
		t.Helper()
		for range 60 {
			press(kb.Tab)
			if js[bool](p, `document.activeElement.matches(`+quote(selector)+`)`) {
				require.NotEqual(t, "none", js[string](p, `getComputedStyle(document.activeElement).outlineStyle`), "and shows it")
				return
			}
		}
		require.FailNow(t, "the keyboard does not reach "+selector)
	}
	tabTo(".skip")
	tabTo("#name")
	press("x", "y", kb.Enter) // its text was selected
	p.becomes("sent.textContent", "1 of 1 accepted")
	tabTo("#number")
	press("1", "2")
	tabTo("#send-burst")
	press(kb.Enter)
	p.becomes("sent.textContent", "12 of 12 accepted")
	p.becomes(detail, "13 messages: 0 waiting, 0 in work, 0 retrying, 13 done, 0 failed.")

	tabTo("[data-view=back]")
	tabTo("[data-view=live]")
	tabTo("#timeline")
	press(kb.ArrowDown)
	p.until(detail+`.startsWith("xy: waited")`, detail)
	press(kb.ArrowDown)
	p.until(detail+`.startsWith("xy1: waited") || `+detail+`.startsWith("xy2: waited")`, detail)
	press("+", "+", kb.ArrowLeft)
	p.becomes(`document.querySelector("[data-view=live]").getAttribute("aria-pressed")`, "false")
	press("l")
	p.becomes(`document.querySelector("[data-view=live]").getAttribute("aria-pressed")`, "true")

	tabTo("#filter")
	press("x", "y", "1", "2")
	p.becomes(`document.querySelectorAll("#rows tr").length`, 1)

	s.bury(t, "id-1", `{"content":"no name"}`)
	s.bury(t, "id-2", `{"name":1}`)
	p.becomes(`document.querySelectorAll("#dead-rows tr").length`, 2)
	require.Contains(t, p.text("#dead-rows"), "name is missing")
	p.becomes(`dead.textContent`, "2")
	p.picture("dead-letters", true)
	tabTo("#dead-rows tr:nth-child(1) button")
	press(kb.Enter)
	p.becomes("ask.open", true)
	press(kb.Escape)
	p.becomes("ask.open", false)
	p.becomes("redriven.textContent", "")
	press(kb.Enter)
	p.becomes("ask.open", true)
	press(kb.Enter) // the first button is Cancel
	p.becomes("ask.open", false)
	p.becomes("redriven.textContent", "")
	press(kb.Enter)
	p.becomes("ask.open", true)
	p.becomes("document.activeElement.textContent", "Cancel")
	press(kb.Tab)
	p.becomes("document.activeElement.id", "yes")
	press(kb.Enter)
	p.becomes("redriven.textContent", "1 sent back.")
	// it can never be processed, and is a dead letter again
	p.becomes(`[...document.querySelectorAll("#dead-rows tr")].map((row) => row.cells[2].textContent).sort()`, []string{"1", "2"})

	tabTo("#dead-rows tr:nth-child(1) button:nth-child(2)")
	press(kb.Enter)
	p.becomes("yes.textContent", "Discard")
	press(kb.Tab, kb.Enter)
	p.becomes("redriven.textContent", "1 discarded.")
	p.becomes(`document.querySelectorAll("#dead-rows tr").length`, 1)
	p.requireClean()
}

func TestFiveHundredEvents(t *testing.T) {
	s := startSystem(t, 20*time.Second) // the workers below are quicker than its Jobs
	p := openTab(t, s.url, 1280, 1000, "dark")
	p.set("#number", "500")
	p.click("#send-burst")
	p.becomes("sent.textContent", "500 of 500 accepted")
	p.until(`Number(ready.textContent) > 400`, "ready.textContent")
	s.work(t, 10, 100*time.Millisecond)
	p.until(`Number(records.textContent) > 250`, "records.textContent")
	// of what is less than a pixel high, only the broad bars have their own colour
	require.Positive(t, p.bars("waiting"))
	p.picture("five-hundred-in-work", false)
	p.until(detail+`.includes(" 500 done")`, detail)
	p.becomes("records.textContent", "500")
	p.picture("five-hundred-done", false)

	// one after the other, it can be told what became of each
	for range 3 {
		p.click("[data-view=in]")
	}
	require.Positive(t, p.bars("done"))
	p.picture("five-hundred-zoomed", false)
	before := js[float64](p, "performance.now()")
	p.do(chromedp.Evaluate[chromedp.Void](`for (let i = 0; i < 5; i++) document.querySelector("[data-view=all]").click()`))
	each := (js[float64](p, "performance.now()") - before) / 5
	t.Logf("a drawing of 500 rows takes %.0f ms", each)
	require.Less(t, each, 1000.0)
	require.Less(t, strings.Count(p.text("#rows"), "worker-"), 101, "the table stays short")
	p.requireClean()
}
