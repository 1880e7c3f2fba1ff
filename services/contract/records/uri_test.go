package records_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"golang.org/x/net/dns/dnsmessage"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/records"
)

// member is a fake of a replica set's member that speaks TLS with a certificate for its
// own name only. It keeps the commands that it gets.
type member struct {
	host    string // the name in the certificate
	cert    []byte // PEM
	addr    string
	primary bool
	set     *[]*member

	mu       sync.Mutex
	commands map[string]bson.Raw
}

// replicaSet returns a secondary and the primary, and the file of their authorities.
func replicaSet(t *testing.T, secondaryHost, primaryHost string) (secondary, primary *member, caFile string) {
	t.Helper()
	set := []*member{{host: secondaryHost}, {host: primaryHost, primary: true}}
	var authorities []byte
	for _, m := range set {
		m.set, m.commands = &set, map[string]bson.Raw{}
		m.listen(t)
		authorities = append(authorities, m.cert...)
	}
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(caFile, authorities, 0o600))
	return set[0], set[1], caFile
}

func (m *member) listen(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	if ip := net.ParseIP(m.host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{m.host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	m.cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	_, port, err := net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)
	m.addr = net.JoinHostPort(m.host, port)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for m.serve(conn) == nil {
				}
			}()
		}
	}()
}

const (
	opReply = 1
	opQuery = 2004 // only the first message of a connection
	opMsg   = 2013
)

// serve answers one command.
func (m *member) serve(conn net.Conn) error {
	var header struct{ Length, ID, To, Op int32 }
	if err := binary.Read(conn, binary.LittleEndian, &header); err != nil {
		return err
	}
	body := make([]byte, header.Length-16)
	if _, err := io.ReadFull(conn, body); err != nil {
		return err
	}
	op, prefix := int32(opMsg), make([]byte, 5)
	command := bson.Raw(body[5:]) // after the flags and the section's kind
	if header.Op == opQuery {
		op, prefix = opReply, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}
		command = bson.Raw(body[4+bytes.IndexByte(body[4:], 0)+1+8:])
	}
	document, err := bson.Marshal(m.answer(command))
	if err != nil {
		return err
	}
	answer := append(prefix, document...)
	if err := binary.Write(conn, binary.LittleEndian, []int32{int32(16 + len(answer)), 1, header.ID, op}); err != nil {
		return err
	}
	_, err = conn.Write(answer)
	return err
}

func (m *member) answer(command bson.Raw) bson.D {
	element, err := command.IndexErr(0)
	if err != nil {
		return bson.D{{Key: "ok", Value: 0}}
	}
	m.mu.Lock()
	m.commands[element.Key()] = bytes.Clone(command)
	m.mu.Unlock()
	var hosts []string
	var primary string
	for _, other := range *m.set {
		hosts = append(hosts, other.addr)
		if other.primary {
			primary = other.addr
		}
	}
	switch strings.ToLower(element.Key()) {
	case "hello", "ismaster":
		return bson.D{{Key: "ok", Value: 1}, {Key: "helloOk", Value: true}, {Key: "isWritablePrimary", Value: m.primary}, {Key: "ismaster", Value: m.primary},
			{Key: "secondary", Value: !m.primary}, {Key: "setName", Value: "rs0"}, {Key: "setVersion", Value: 1}, {Key: "hosts", Value: hosts},
			{Key: "primary", Value: primary}, {Key: "me", Value: m.addr}, {Key: "minWireVersion", Value: 0}, {Key: "maxWireVersion", Value: 25},
			{Key: "maxBsonObjectSize", Value: 16 << 20}, {Key: "maxMessageSizeBytes", Value: 48_000_000}, {Key: "maxWriteBatchSize", Value: 100_000},
			{Key: "logicalSessionTimeoutMinutes", Value: 30}}
	case "find": // one record, and more to come
		return bson.D{{Key: "ok", Value: 1}, {Key: "cursor", Value: bson.D{{Key: "id", Value: int64(7)}, {Key: "ns", Value: "db.c"},
			{Key: "firstBatch", Value: bson.A{records.Record{ID: "id", Name: "a", Status: records.Done, StoredAt: time.Now().Add(-time.Hour)}}}}}}
	}
	return bson.D{{Key: "ok", Value: 1}, {Key: "n", Value: 1}, {Key: "nModified", Value: 1}}
}

func (m *member) got(command string) bson.Raw {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.commands[command]
}

func openURI(t *testing.T, c records.Config) *records.Store {
	t.Helper()
	c.DB, c.Collection = "db", "c"
	if c.URI != "" {
		c.Host, c.Port = "mongodb.invalid", "27017" // which the URI wins over
	}
	require.NoError(t, c.Validate())
	s, err := records.Open(c, "test")
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// The URI names one member, and the set's primary is another one, with a certificate
// for another name.
func TestReplicaSetWithTLS(t *testing.T) {
	t.Parallel()
	secondary, primary, caFile := replicaSet(t, "127.0.0.1", "localhost")
	seed := withCA(records.Config{}, caFile)
	host, port, err := net.SplitHostPort(secondary.addr)
	require.NoError(t, err)
	seed.Host, seed.Port = host, config.Port(port)
	for name, c := range map[string]records.Config{
		"no URI":                   seed,
		"all in the URI":           {URI: "mongodb://" + secondary.addr + "/?replicaSet=rs0&tls=true&tlsCAFile=" + caFile + "&retryWrites=false&w=1&readPreference=secondary"},
		"the CA in a variable":     withCA(records.Config{URI: "mongodb://" + secondary.addr + "/?replicaSet=rs0&tls=true&retryWrites=false"}, caFile),
		"TLS in the variables too": withCA(records.Config{URI: "mongodb://" + secondary.addr + "," + primary.addr + "/?retryWrites=false"}, caFile),
	} {
		t.Run(name, func(t *testing.T) {
			s := openURI(t, c)
			require.NoError(t, s.Ping(t.Context()))
			require.NoError(t, s.Begin(t.Context(), message("id", "a"), run("job", 1)))
			update := primary.got("update")
			require.NotNil(t, update)
			require.Nil(t, secondary.got("update"))
			_, err := update.LookupErr("txnNumber")
			require.Equal(t, c.URI == "", err == nil, "retryWrites=false: %v", update)
			require.Equal(t, "majority", update.Lookup("writeConcern", "w").StringValue(), "a URI cannot weaken it")
			require.True(t, update.Lookup("writeConcern", "j").Boolean())
			require.NotNil(t, primary.got("ping"), "reads go to the primary too")
			require.Nil(t, secondary.got("ping"))
		})
	}
}

// What is read is stored for good, and a cursor that is left is closed, also by a reader
// who has hung up.
func TestReadsOfAReplicaSet(t *testing.T) {
	t.Parallel()
	secondary, primary, caFile := replicaSet(t, "127.0.0.1", "localhost")
	s := openURI(t, records.Config{URI: "mongodb://" + secondary.addr + "/?replicaSet=rs0&tls=true&readConcernLevel=local&tlsCAFile=" + caFile})
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	for _, err := range s.List(ctx, records.Query{}) {
		require.NoError(t, err)
		hangUp()
		break
	}
	require.NotNil(t, primary.got("find"))
	require.Equal(t, "majority", primary.got("find").Lookup("readConcern", "level").StringValue(), "a URI cannot weaken it")
	require.NotNil(t, primary.got("killCursors"))
}

func withCA(c records.Config, caFile string) records.Config {
	c.TLS, c.CAFile = true, caFile
	return c
}

func TestDirectConnection(t *testing.T) {
	t.Parallel()
	secondary, primary, caFile := replicaSet(t, "127.0.0.1", "localhost")
	s := openURI(t, records.Config{URI: "mongodb://" + secondary.addr + "/?directConnection=true&tls=true&tlsCAFile=" + caFile})
	require.NoError(t, s.Ping(t.Context()))
	require.NotNil(t, secondary.got("ping"))
	primary.mu.Lock()
	defer primary.mu.Unlock()
	require.Empty(t, primary.commands)
}

// Not parallel: it changes the resolver.
func TestSRV(t *testing.T) {
	secondary, primary, caFile := replicaSet(t, "a.records.test", "b.records.test")
	resolve(t, secondary, primary)
	s := openURI(t, withCA(records.Config{URI: "mongodb+srv://set.records.test/"}, caFile))
	require.NoError(t, s.Ping(t.Context()))
	require.NotNil(t, primary.got("ping"))

	// a DNS that has no answer is no mistake of the configuration: it may have one later
	c := records.Config{URI: "mongodb+srv://user:s3cret@unknown.records.test/", DB: "db", Collection: "c"}
	c.Host = "localhost"
	require.NoError(t, c.Validate())
	_, err := records.Open(c, "test")
	require.ErrorContains(t, err, "unknown.records.test")
	require.NotContains(t, err.Error(), "s3cret")
}

// resolve makes the process ask a DNS that knows set.records.test.
func resolve(t *testing.T, members ...*member) {
	dns, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	system := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = system; _ = dns.Close() })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("udp", dns.LocalAddr().String())
	}}
	go func() {
		for buffer := make([]byte, 4096); ; {
			n, from, err := dns.ReadFrom(buffer)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buffer[:n]) != nil {
				continue
			}
			m.Response, m.Additionals = true, nil
			q := m.Questions[0]
			header := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 60}
			for i, member := range members {
				switch name := q.Name.String(); {
				case q.Type == dnsmessage.TypeSRV && name == "_mongodb._tcp.set.records.test.":
					_, port, _ := net.SplitHostPort(member.addr)
					n, _ := strconv.Atoi(port) // net.LookupPort would ask the resolver
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.SRVResource{Target: dnsmessage.MustNewName(member.host + "."), Port: uint16(n)}})
				case q.Type == dnsmessage.TypeTXT && name == "set.records.test." && i == 0:
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.TXTResource{TXT: []string{"replicaSet=rs0"}}})
				case q.Type == dnsmessage.TypeA && name == member.host+".":
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}})
				}
			}
			if len(m.Answers) == 0 {
				m.RCode = dnsmessage.RCodeNameError
			}
			if answer, err := m.Pack(); err == nil {
				_, _ = dns.WriteTo(answer, from)
			}
		}
	}()
}

func TestURIThatIsWrong(t *testing.T) {
	t.Parallel()
	const address, option = "MONGODB_URI: is not like mongodb://", "MONGODB_URI: an option after the ?"
	for uri, problem := range map[string]string{
		"s3cret":                                                  address,
		"amqp://root:s3cret@mongodb":                              address,
		"mongodb://":                                              address,
		"mongodb://root:s3cret":                                   address,
		"mongodb://root:s3cret@":                                  address,
		"mongodb://root:a/s3cret@mongodb":                         address,
		"mongodb://root:a:s3cret@mongodb":                         address,
		"mongodb://root:a?s3cret@mongodb/":                        address,
		"mongodb://root:a%s3cret@mongodb/":                        address,
		"mongodb://root:a@s3cret/b@mongodb/":                      address,
		"mongodb://root:a@s3cret@mongodb/":                        address,
		"mongodb+srv://root:a@s3cret@mongodb/":                    address,
		"mongodb://root:s3cret@mongodb:many/":                     address,
		"mongodb://root:s3cret@mongodb/?tls=true&ssl=false":       option,
		"mongodb://root:s3cret@mongodb/?maxPoolSize=s3cret":       option,
		"mongodb://root:s3cret@a,b/?directConnection=true":        option,
		"mongodb://mongodb/?authMechanism=SCRAM-SHA-256":          option,
		"mongodb+srv://cluster0.x/?srvMaxHosts=many":              option,
		"mongodb://root:s3cret@mongodb/?tls=true&tlsCAFile=/none": "MONGODB_URI: open /none: no such file or directory",
	} {
		c := records.Config{URI: uri, DB: "db", Collection: "c"}
		c.Host = "localhost"
		err := c.Validate()
		require.ErrorContains(t, err, problem, uri)
		require.NotContains(t, err.Error(), "s3cret")
	}
	// as Azure, Amazon and Atlas print them
	for _, uri := range []string{
		"mongodb://account:s3cret==@account.mongo.cosmos.azure.com:10255/?ssl=true&replicaSet=globaldb&retrywrites=false&maxIdleTimeMS=120000&appName=@account@",
		"mongodb://root:s3cret@docdb.cluster-x.eu-west-1.docdb.amazonaws.com:27017/?replicaSet=rs0&readPreference=secondaryPreferred&retryWrites=false",
		"mongodb+srv://root:s3cret@cluster0.x.mongodb.net/?retryWrites=true&w=majority&appName=Cluster0",
		"mongodb+srv://root:s3cret@cluster0.x.mongodb.net/?srvMaxHosts=2",
		"mongodb+srv://root:s3cret@cluster0.x.mongodb.net/?w=majority&srvServiceName=other&srvmaxhosts=2&tls=true",
		"mongodb+srv://root:s3cret@cluster0.x.mongodb.net/?w=majority&srvMaxHosts=2",
	} {
		c := records.Config{URI: uri, DB: "db", Collection: "c"}
		c.Host = "localhost"
		require.NoError(t, c.Validate(), uri)
	}
}
