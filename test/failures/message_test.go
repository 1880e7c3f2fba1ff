package failures_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"keda-p2/services/contract"
	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

// deadLetters returns what GET /dead-letters answers.
func (p *running) deadLetters(t *testing.T) []queue.DeadLetter {
	t.Helper()
	response, err := http.Get("http://" + p.addr + "/dead-letters")
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode)
	var dead []queue.DeadLetter
	require.NoError(t, json.NewDecoder(response.Body).Decode(&dead))
	return dead
}

func (p *running) redrive(t *testing.T, id string, want int) {
	t.Helper()
	response, err := http.PostForm("http://"+p.addr+"/dead-letters/redrive?id="+url.QueryEscape(id), nil)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode)
	var answer struct{ Redriven int }
	require.NoError(t, json.NewDecoder(response.Body).Decode(&answer))
	require.Equal(t, want, answer.Redriven)
}

// Messages that no Job can ever process, from programs other than complex-app.
func TestBadMessages(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", contract.MaxEventBytes)
	for name, c := range map[string]struct {
		m      amqp.Publishing
		reason string
	}{
		"not JSON":                               {amqp.Publishing{MessageId: "id", Body: []byte("name=a")}, "not JSON"},
		"nothing":                                {amqp.Publishing{MessageId: "id"}, "ends too early"},
		"a name twice":                           {amqp.Publishing{MessageId: "id", Body: []byte(`{"name":"a","name":"b"}`)}, "more than once"},
		"a name in another case":                 {amqp.Publishing{MessageId: "id", Body: []byte(`{"Name":"a"}`)}, "name is missing"},
		"an array":                               {amqp.Publishing{MessageId: "id", Body: []byte(`[]`)}, "not a JSON object"},
		"deep":                                   {amqp.Publishing{MessageId: "id", Body: bytes.Repeat([]byte("["), 100_000)}, "invalid event"},
		"no name":                                {amqp.Publishing{MessageId: "id", Body: []byte(`{"content":"a"}`)}, "name is missing"},
		"over 64 KiB":                            {amqp.Publishing{MessageId: "id", Body: []byte(`{"name":"a` + long + `"}`)}, "at most 65536"},
		"10 MB":                                  {amqp.Publishing{MessageId: "id", Body: bytes.Repeat([]byte("x"), 10_000_000)}, "not JSON"},
		"a field's name of 1 MB":                 {amqp.Publishing{MessageId: "id", Body: []byte(`{"` + strings.Repeat("k", 1_000_000) + `":1}`)}, "name is missing"},
		"invalid UTF-8":                          {amqp.Publishing{MessageId: "id", Body: []byte("{\"name\":\"a\xff\"}")}, "invalid UTF-8"},
		"half a character":                       {amqp.Publishing{MessageId: "id", Body: []byte(`{"name":"\ud800"}`)}, "invalid surrogate pair"},
		"compressed":                             {amqp.Publishing{MessageId: "id", ContentEncoding: "gzip", Body: []byte("\x1f\x8b\x08\x00")}, "not JSON"},
		"with a header that is a copy's address": {amqp.Publishing{MessageId: "id", Headers: amqp.Table{"CC": []any{"THE QUEUE"}}, Body: []byte("odd")}, "not JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q, db := servers(t)
			if name == "with a header that is a copy's address" {
				c.m.Headers = amqp.Table{"CC": []any{q.Queue}}
			}
			publish(t, q, c.m)
			j := startJob(t, "job", q, db, "PROCESSING_TIME=1h")
			require.Equal(t, 1, j.exit(t))
			require.Contains(t, j.Tail(1), "moved to the dead-letter queue")
			requireQueues(t, q, 0, 1)
			require.Empty(t, all(t, db))

			deadLetters := queue.NewDeadLetters(q, t.Name())
			t.Cleanup(deadLetters.Close)
			dead, err := deadLetters.List(t.Context(), 10)
			require.NoError(t, err)
			require.Len(t, dead, 1)
			require.Equal(t, c.m.MessageId, dead[0].ID)
			require.Contains(t, dead[0].Reason, c.reason)
			require.Less(t, len(dead[0].Reason), 1000)
			require.Less(t, len(dead[0].Body), 10_000, "a thousand of them must fit into the service's memory")
			require.Equal(t, 1, dead[0].Attempts)
			require.Equal(t, "job", dead[0].Job)
			require.WithinDuration(t, time.Now(), dead[0].DeadAt, time.Hour)
			require.Zero(t, startJob(t, "next", q, db).exit(t), "it is not tried again")
		})
	}
}

// Messages of other programs that are not quite like ours are processed.
func TestMessagesOfOthers(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]amqp.Publishing{
		"no id":             {Body: []byte(`{"name":"a","content":"b"}`)},
		"a further field":   {MessageId: "id", Body: []byte(`{"version":2,"name":"a","content":"b"}`)},
		"a byte order mark": {MessageId: "id", Body: []byte("\ufeff" + `{"name":"a","content":"b"}`)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q, db := servers(t)
			publish(t, q, m)
			require.Zero(t, startJob(t, "job", q, db, "CLAIM_TIMEOUT=5s").exit(t))
			requireDone(t, db, "job", 1)
			requireQueues(t, q, 0, 0)
			found := all(t, db)
			require.Equal(t, "a", found[0].Name)
			require.Equal(t, "b", found[0].Content)
			require.NotEmpty(t, found[0].ID)
		})
	}
}

// What other programs may set on a message whose body is right.
func TestUnknownPropertiesAndHeaders(t *testing.T) {
	t.Parallel()
	q, db := servers(t)
	app := startApp(t, q, db)
	odd := amqp.Table{
		"a": int8(1), "b": "text", "c": []any{"list", int64(1)}, "d": amqp.Table{"e": true}, "f": nil, "g": []byte{0xff},
		"h": 1.5, "i": time.Unix(1, 0), "j": amqp.Decimal{Scale: 1, Value: 2}, strings.Repeat("k", 255): "long",
	}
	messages := map[string]amqp.Publishing{
		"every property": {
			Headers: odd, ContentType: "text/plain", ContentEncoding: "utf-8", Priority: 9, CorrelationId: "c",
			ReplyTo: "r", Expiration: "3600000", Type: "t", AppId: "a",
		},
		"headers of ours, of other types": {Headers: amqp.Table{"sent-at-ms": "yesterday", "attempts-before": "many", "x-death": "no"}},
		"headers of ours, far off":        {Headers: amqp.Table{"sent-at-ms": int64(math.MaxInt64), "attempts-before": int64(math.MaxInt64)}},
		"headers of ours, negative":       {Headers: amqp.Table{"sent-at-ms": int64(math.MinInt64), "attempts-before": int64(-7)}},
		// a frequent mistake: the property has seconds
		"a time in milliseconds": {Timestamp: time.Unix(time.Now().UnixMilli(), 0)},
	}
	for id, m := range messages {
		m.MessageId, m.Body = id, []byte(`{"name":"a"}`)
		publish(t, q, m)
	}
	for range messages {
		require.Zero(t, startJob(t, "job", q, db).exit(t))
	}
	requireQueues(t, q, 0, 0)
	for _, r := range dataOf(t, app, len(messages)) {
		require.Equal(t, records.Done, r.Status)
	}
}

// Names and contents come out byte for byte as they went in.
func TestEveryScript(t *testing.T) {
	t.Parallel()
	q, db := servers(t)
	app := startApp(t, q, db)
	app.eventually(t, "/readyz", http.StatusOK)
	var scripts strings.Builder // the first letter of each script that Unicode knows
	for _, table := range unicode.Scripts {
		if len(table.R16) > 0 {
			scripts.WriteRune(rune(table.R16[0].Lo))
		} else {
			scripts.WriteRune(rune(table.R32[0].Lo))
		}
	}
	texts := []string{
		scripts.String(), "имя", "名前", "اسم\u200f", "नाम", "👩‍👩‍👧‍👦🏳️‍🌈", "e\u0301 and é", "\x00", "a\x00b", "\x01\x1f\x7f\u0080", "\r\n\t ",
		"\ufeff", "\ufffd", "\uffff", "\U0010ffff", "\u2028\u2029", "<script>&amp;\"'\\", `{"$ne":1}`, "$where", "a.b.$", "%00%ff+&=;", "null", "0", " ",
		strings.Repeat("й", 5000),
	}
	for i, text := range texts {
		for _, send := range []struct{ contentType, body string }{
			{"application/x-www-form-urlencoded", url.Values{"name": {text}, "content": {text}}.Encode()},
			{"application/json", asJSON(t, text)},
		} {
			response, err := http.Post("http://"+app.addr+"/send", send.contentType, strings.NewReader(send.body))
			require.NoError(t, err)
			var accepted contract.Event
			require.NoError(t, json.NewDecoder(response.Body).Decode(&accepted))
			require.NoError(t, response.Body.Close())
			require.Equal(t, http.StatusAccepted, response.StatusCode, "%d %q", i, text)
			require.Equal(t, contract.Event{Name: text, Content: text}, accepted)
		}
	}
	j := startJob(t, "job", q, db, fmt.Sprint("MESSAGES=", 2*len(texts)))
	require.Zero(t, j.exit(t))
	for i, r := range dataOf(t, app, 2*len(texts)) {
		require.Equal(t, texts[i/2], r.Name)
		require.Equal(t, texts[i/2], r.Content)
		byName, err := http.Get("http://" + app.addr + "/data?limit=1&name=" + url.QueryEscape(r.Name))
		require.NoError(t, err)
		var one []records.Record
		require.NoError(t, json.NewDecoder(byName.Body).Decode(&one))
		require.NoError(t, byName.Body.Close())
		require.Len(t, one, 1)
		require.Equal(t, r.Name, one[0].Name)
	}
}

func asJSON(t *testing.T, text string) string {
	t.Helper()
	body, err := contract.Event{Name: text, Content: text}.Encode()
	require.NoError(t, err)
	return string(body)
}

// A message that kills its worker each time goes to the dead letters after five
// deliveries, the others are processed meanwhile, and a redrive lets it have
// another five.
func TestAMessageThatKillsItsWorker(t *testing.T) {
	t.Parallel()
	q, db := servers(t)
	app := startApp(t, q, db)
	app.eventually(t, "/readyz", http.StatusOK)
	publish(t, q, event("good-1"), event("killer"), event("good-2"), event("good-3"))
	kills := 0
	ch := contracttest.Channel(t, q)
	for n := range 4 * maxAttempts {
		waiting, err := ch.QueueDeclarePassive(q.Queue, true, false, false, false, nil)
		require.NoError(t, err)
		dead, err := ch.QueueDeclarePassive(q.DeadQueue(), true, false, false, false, nil)
		require.NoError(t, err)
		if waiting.Messages == 0 && dead.Messages == 1 { // one that RabbitMQ holds back is in neither
			break
		}
		j := startJob(t, fmt.Sprint("job-", n), q, db, "PROCESSING_TIME=5s", "CLAIM_TIMEOUT=5s")
		eventually(t, func() bool { return j.logged("stored, working") || j.logged("nothing to do") }, "it has a message")
		if j.logged(`"id":"killer"`) {
			j.Kill()
			kills++
		}
		j.exit(t)
	}
	require.Equal(t, maxAttempts, kills)
	requireQueues(t, q, 0, 1)
	statuses := map[string]records.Status{}
	for _, r := range all(t, db) {
		statuses[r.ID] = r.Status
	}
	require.Equal(t, map[string]records.Status{
		"good-1": records.Done, "good-2": records.Done, "good-3": records.Done, "killer": records.Processing,
	}, statuses)

	dead := app.deadLetters(t)
	require.Len(t, dead, 1)
	require.Equal(t, "killer", dead[0].ID)
	require.Equal(t, maxAttempts, dead[0].Attempts)
	require.Contains(t, dead[0].Reason, "delivered 5 times")
	require.NotEmpty(t, dead[0].Job)
	require.WithinDuration(t, time.Now(), dead[0].DeadAt, time.Hour)

	app.redrive(t, "killer", 1)
	requireQueues(t, q, 1, 0)
	require.Zero(t, startJob(t, "mended", q, db).exit(t))
	for _, r := range all(t, db) {
		if r.ID == "killer" {
			require.Equal(t, records.Done, r.Status)
			require.Equal(t, "mended", r.Job)
			require.Equal(t, maxAttempts+1, r.Attempts)
		}
	}
	requireQueues(t, q, 0, 0)
}

// A Job that runs out of memory over a message dies at once, each time.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	q, db := servers(t)
	publish(t, q, amqp.Publishing{MessageId: "huge", Body: []byte(`{"name":"` + strings.Repeat("x", 15<<20) + `"}`)}, event("good"))
	limited := filepath.Join(t.TempDir(), "processor-job")
	script := fmt.Sprintf("#!/bin/sh\nulimit -d %d\nexec %s\n", 90<<10, program("processor-job"))
	require.NoError(t, os.WriteFile(limited, []byte(script), 0o700))
	deaths := 0
	for range 4 * maxAttempts {
		j := start(t, limited, "PROBE_ADDR", q, db, []string{"POD_NAME=job", "PROCESSING_TIME=0s", "CLAIM_TIMEOUT=10s"})
		if code := j.exit(t); code != 0 {
			deaths++
			// Where memory ends, Go's runtime dies in one of twenty places, each with words of its own,
			// or with a SIGSEGV. Its exit code is always 2; the worker itself ends with 1.
			require.Equal(t, 2, code, j.Tail(500))
			require.False(t, j.logged("panic: "), j.Tail(500))
		} else if j.logged("nothing to do") {
			break
		}
	}
	require.Equal(t, maxAttempts, deaths)
	requireQueues(t, q, 0, 1)
	requireDone(t, db, "job", 1)
}
