package postgres

import (
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"strconv"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/gatehook/gatehook/internal/secret"
)

// pooler stands between clients and a database. Like every pooler, it tells a client
// another number than that of the process which serves it (PostgreSQL, Message Formats:
// BackendKeyData).
func pooler(t *testing.T, database secret.Value) secret.Value {
	t.Helper()
	to, err := pgx.ParseConfig(database.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	network, address := addressOf(to)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() {
		l.Close() //nolint:errcheck // ends Accept
		all.Wait()
	})
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				server, err := (&net.Dialer{}).DialContext(t.Context(), network, address)
				if err != nil {
					client.Close() //nolint:errcheck // the test fails
					return
				}
				all.Go(func() {
					_, _ = io.Copy(server, client)
					server.Close() //nolint:errcheck // it ends anyway
				})
				renumber(client, server)
				client.Close() //nolint:errcheck // it ends anyway
			})
		}
	})
	u, err := url.Parse(database.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	u.Host = l.Addr().String()
	q := u.Query()
	q.Del("host")
	q.Del("port")
	q.Set("sslmode", "disable")
	u.RawQuery = q.Encode()
	return secret.New(u.String())
}

// renumber copies what a server sends, with another number of its process.
func renumber(client io.Writer, server io.Reader) {
	head := make([]byte, 5)
	for {
		if _, err := io.ReadFull(server, head); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(server, body); err != nil {
			return
		}
		if head[0] == 'K' {
			binary.BigEndian.PutUint32(body, binary.BigEndian.Uint32(body)+1)
		}
		if _, err := client.Write(append(append([]byte(nil), head...), body...)); err != nil {
			return
		}
	}
}

func addressOf(c *pgx.ConnConfig) (network, address string) {
	if c.Host[0] == '/' {
		return "unix", c.Host + "/.s.PGSQL." + strconv.Itoa(int(c.Port))
	}
	return "tcp", net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port)))
}

// Through a pooler nothing is prepared under a name, unless the URL says how statements
// are sent; and what needs a session goes past it.
func TestPoolerIsNoticed(t *testing.T) {
	t.Parallel()
	direct := start(t, dataDir(t)).URL()
	pooled := pooler(t, direct)
	for name, tt := range map[string]struct {
		url, direct  secret.Value
		engine, hear pgx.QueryExecMode
	}{
		"no pooler":             {direct, secret.Value{}, pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheStatement},
		"a pooler":              {pooled, secret.Value{}, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeCacheDescribe},
		"a pooler, and past it": {pooled, direct, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeCacheStatement},
		"a pooler that the URL knows how to use": {
			secret.New(pooled.Reveal() + "&default_query_exec_mode=exec"), secret.Value{}, pgx.QueryExecModeExec, pgx.QueryExecModeExec,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pools, err := OpenPools(t.Context(), tt.url, tt.direct, quiet)
			if err != nil {
				t.Fatal(err)
			}
			defer pools.Close()
			if got := pools.Engine.Config().ConnConfig.DefaultQueryExecMode; got != tt.engine {
				t.Errorf("the engine's statements are sent by %v, want %v", got, tt.engine)
			}
			if got := pools.Direct.Config().ConnConfig.DefaultQueryExecMode; got != tt.hear {
				t.Errorf("directly statements are sent by %v, want %v", got, tt.hear)
			}
			var n int
			if err := pools.Engine.QueryRow(t.Context(), `SELECT $1::int`, 7).Scan(&n); err != nil || n != 7 {
				t.Errorf("%d, %v", n, err)
			}
			if err := pools.Engine.QueryRow(t.Context(), `SELECT count(*) FROM pg_prepared_statements WHERE name <> ''`, pgx.QueryExecModeSimpleProtocol).Scan(&n); err != nil ||
				(n > 0) != (tt.engine == pgx.QueryExecModeCacheStatement) {
				t.Errorf("%d statements are prepared, %v", n, err)
			}
			conn, err := Connect(t.Context(), pools.Direct)
			if err != nil {
				t.Fatal(err)
			}
			if err := conn.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
