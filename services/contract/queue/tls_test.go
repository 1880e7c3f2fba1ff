package queue_test

import (
	"net"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/queue"
)

func TestAnUnknownAuthorityIsExplained(t *testing.T) {
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	require.NoError(t, err)
	_, err = queue.Dial(t.Context(), queue.Config{Server: config.Server{Host: "127.0.0.1", TLS: true}, Port: config.Port(port), VHost: "/"}, "test")
	require.ErrorContains(t, err, "RABBITMQ_CA_FILE must hold the authority")
}
