package records_test

import (
	"net"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/records"
)

// The driver passes on the handshake's error as text only.
func TestAnUnknownAuthorityIsExplained(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	require.NoError(t, err)
	s, err := records.Open(records.Config{Server: config.Server{Host: "127.0.0.1", TLS: true}, Port: config.Port(port)}, "test")
	require.NoError(t, err)
	require.ErrorContains(t, s.Ping(t.Context()), "MONGODB_CA_FILE must hold the authority")
	require.NoError(t, s.Close())
}
