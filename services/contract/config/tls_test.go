package config_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/config"
)

func TestExplainTLS(t *testing.T) {
	encrypted := httptest.NewTLSServer(http.NotFoundHandler()) // for example.com, 127.0.0.1 and ::1
	defer encrypted.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	trusted := x509.NewCertPool()
	trusted.AddCert(encrypted.Certificate())

	for _, test := range []struct {
		name   string
		server *httptest.Server
		client *tls.Config
		remedy string
	}{
		{"another authority", encrypted, &tls.Config{ServerName: "example.com", RootCAs: x509.NewCertPool()}, "X_CA_FILE must hold the authority"},
		{"another name", encrypted, &tls.Config{ServerName: "rabbitmq", RootCAs: trusted}, "not rabbitmq: set X_HOST to a name that the server's certificate has"},
		{"an address", encrypted, &tls.Config{ServerName: "10.0.0.1", RootCAs: trusted}, "set X_HOST to a name that the server's certificate has"},
		{"no TLS there", plain, &tls.Config{ServerName: "example.com", RootCAs: trusted}, "set the right X_PORT, or X_TLS=false"},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", test.server.Listener.Addr().String())
			require.NoError(t, err)
			defer conn.Close()
			err = tls.Client(conn, test.client).HandshakeContext(t.Context())
			explained := config.ExplainTLS("X", err)
			require.ErrorIs(t, explained, err)
			require.ErrorContains(t, explained, err.Error()+": ")
			require.ErrorContains(t, explained, test.remedy)
			t.Log(explained)
		})
	}
	withoutAddresses := x509.HostnameError{Certificate: encrypted.Certificate(), Host: "10.0.0.1"}
	withoutAddresses.Certificate.IPAddresses = nil
	require.ErrorContains(t, config.ExplainTLS("X", withoutAddresses), "X_HOST")
	require.Equal(t, net.ErrClosed, config.ExplainTLS("X", net.ErrClosed))
}
