package config

import (
	"fmt"
	"strings"
)

// ExplainTLS adds what to do to an error of a TLS handshake. The prefix is that of the
// server's variables. It goes by the text, because MongoDB's driver passes on no more.
func ExplainTLS(prefix string, err error) error {
	const name = "set %[2]s_HOST to a name that the server's certificate has, or issue one for this name"
	for _, known := range []struct{ text, remedy string }{
		{"x509: certificate signed by unknown authority", "%[2]s_CA_FILE must hold the authority that signed the server's certificate"},
		{"x509: certificate is ", name},
		{"x509: cannot validate certificate for ", name},
		{"tls: first record does not look like a TLS handshake", "the server does not speak TLS on this port: set the right %[2]s_PORT, or %[2]s_TLS=false"},
	} {
		if strings.Contains(err.Error(), known.text) {
			return fmt.Errorf("%[1]w: "+known.remedy, err, prefix)
		}
	}
	return err
}
