package failures_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

func TestRabbitMQsPermissions(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	t.Run("the smallest", func(t *testing.T) { smallestPermissions(t, n) })
	t.Run("refused", func(t *testing.T) { refused(t, n) })
}

// smallestPermissions are those that docs/production.md gives.
func smallestPermissions(t *testing.T, n node) {
	db := contracttest.MongoDB(t)
	admin := n.queue
	user := func(name, configure, write, read string) queue.Config {
		require.NoError(t, n.Ctl(t.Context(), "add_user", name, admin.Password))
		require.NoError(t, n.Ctl(t.Context(), "set_permissions", name, configure, write, read))
		c := admin
		c.User = name
		return c
	}
	forApp := user("complex-app", `^task_queue\.dead\.lock$`, `^amq\.default$`, `^task_queue(\.dead)?$`)
	forJob := user("processor-job", `^$`, `^(amq\.default|task_queue\.dead)$`, `^task_queue$`)
	forKEDA := user("keda", `^$`, `^task_queue$`, `^$`)

	// nobody has declared the queues yet
	app := startApp(t, forApp, db)
	eventually(t, func() bool {
		return app.logged(`no queue 'task_queue.dead' in vhost '/'`) && app.logged(`the user \"complex-app\" may not declare it`)
	}, "the log says so")
	j := startJob(t, "job", forJob, db, "RETRY_TIMEOUT=10s")
	require.Equal(t, 1, j.exit(t))
	require.Contains(t, j.Tail(1), `the user \"processor-job\" may not declare it`)

	contracttest.Consumer(t, admin)
	app.sendUntilAccepted(t, "the-event")
	_, err := contracttest.Channel(t, forKEDA).QueueDeclarePassive(admin.Queue, true, false, false, false, nil)
	require.NoError(t, err, "as KEDA looks")
	requireQueues(t, admin, 1, 0)
	require.Equal(t, 1, startJob(t, "job", forJob, db, "FAILURE_RATE=1", "RABBITMQ_MAX_ATTEMPTS=1").exit(t))
	requireQueues(t, admin, 0, 1)
	requireStatus(t, db, records.Failed)
	require.Equal(t, http.StatusOK, app.answers("/dead-letters"))
	require.Equal(t, http.StatusOK, app.answers("/status"))
	response, err := http.Post("http://"+app.addr+"/dead-letters/redrive", "", nil)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusOK, response.StatusCode)
	requireQueues(t, admin, 1, 0)
	require.Zero(t, startJob(t, "job", forJob, db).exit(t))
	requireQueues(t, admin, 0, 0)
	requireStatus(t, db, records.Done)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, "http://"+app.addr+"/dead-letters", nil)
	require.NoError(t, err)
	response, err = http.DefaultClient.Do(request)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusOK, response.StatusCode)
}

// A Job says at once what RabbitMQ refuses and what to do about it, and tries again: KEDA
// would replace it at once. It goes on when that was mended.
func refused(t *testing.T, n node) {
	db := contracttest.MongoDB(t)
	require.NoError(t, n.Ctl(t.Context(), "add_user", "nobody", n.queue.Password))
	require.NoError(t, n.Ctl(t.Context(), "add_user", "reader", n.queue.Password))
	require.NoError(t, n.Ctl(t.Context(), "set_permissions", "reader", `^$`, `^task_queue(\.dead)?$`, `^$`))
	blind := n.queue
	blind.User = "reader"
	app := startApp(t, blind, db)
	eventually(t, func() bool {
		app.mustSend(t, "", http.StatusServiceUnavailable)
		return app.logged("access to exchange 'amq.default' in vhost '/' refused for user 'reader'")
	}, "the log says why nothing is sent")
	require.True(t, app.logged("docs/production.md"))
	for name, c := range map[string]struct {
		change func(*queue.Config)
		says   string
	}{
		"the password":             {func(c *queue.Config) { c.Password = "wr0ng" }, "username or password not allowed"},
		"the virtual host":         {func(c *queue.Config) { c.VHost = "team-a" }, "vhost team-a not found"},
		"the user in it":           {func(c *queue.Config) { c.User = "nobody" }, "access to vhost '/' refused for user 'nobody'"},
		"reading":                  {func(c *queue.Config) { c.User = "reader" }, "access to queue 'task_queue' in vhost '/' refused for user 'reader'"},
		"other arguments, as ever": {func(c *queue.Config) { c.MaxAttempts = 7 }, "the queue exists with other arguments"},
	} {
		t.Run(name, func(t *testing.T) {
			q := n.queue
			c.change(&q)
			began := time.Now()
			j := startJob(t, "job", q, db, "RETRY_TIMEOUT=15s") // RabbitMQ takes 3 s to refuse a password
			require.Equal(t, 1, j.exit(t))
			t.Logf("%s: %s", time.Since(began), j.Tail(1))
			require.Contains(t, j.Tail(1), c.says)
			require.Contains(t, j.Tail(1), "docs/")
			require.False(t, j.logged(q.Password))
		})
	}
	mended := n.queue
	mended.User = "nobody"
	j := startJob(t, "job", mended, db, "RETRY_TIMEOUT=1h", "CLAIM_TIMEOUT=0s")
	eventually(t, func() bool { return j.logged("access to vhost '/' refused for user 'nobody'") }, "the log says so")
	require.NoError(t, n.Ctl(t.Context(), "set_permissions", "nobody", ".*", ".*", ".*"))
	require.Zero(t, j.exit(t))
}
