package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/secret"
)

// Pools are a server's connections by what they are for: what uses up the
// connections of one purpose takes none from another. All are opened when they are
// needed, and closed when they were idle for long.
type Pools struct {
	// Heartbeat renews the lease. Nothing else may use it: a server without a
	// lease does nothing.
	Heartbeat *pgxpool.Pool
	// Journal is for the journal's writer: the shards stop reading while it waits.
	Journal *pgxpool.Pool
	// Engine is for everything else that the server does by itself: recording,
	// taking up retries, claims, upkeep.
	Engine *pgxpool.Pool
	// API is for the calls of the API.
	API *pgxpool.Pool
	// Direct is for what needs a session (Connect). No pooler is between, if the server was
	// told how to connect without one.
	Direct *pgxpool.Pool
}

const (
	// usualDial bounds a connect, if the URL does not. With TLS and a password, a
	// connect takes seven round trips.
	usualDial = 20 * time.Second
	// heartbeatDial bounds a connect of the heartbeat, whatever the URL says: after some
	// time, another try is worth more than a longer wait.
	heartbeatDial = 8 * time.Second
)

// OpenPools makes the pools. It waits up to a minute for a database that is starting up, to
// see whether a pooler is between. An empty direct stands for url. The caller closes the
// pools.
func OpenPools(ctx context.Context, url, direct secret.Value, log *slog.Logger) (*Pools, error) {
	total, err := totalOf(url)
	if err != nil {
		return nil, err
	}
	if total < minTotal {
		return nil, fmt.Errorf("pool_max_conns=%d in the database URL is too small: a server needs at least %d connections", total, minTotal)
	}
	pooled, err := await(ctx, url, log)
	if err != nil {
		return nil, err
	}
	directPooled := pooled
	if !direct.Empty() && pooled {
		if directPooled, err = await(ctx, direct, log); err != nil {
			return nil, err
		}
	}
	if pooled {
		log.LogAttrs(ctx, slog.LevelInfo, "a pooler is between this server and PostgreSQL: no statement is prepared")
	}
	if directPooled {
		log.LogAttrs(ctx, slog.LevelWarn, "without a connection past the pooler, changes of listeners are heard of some seconds late: set DATABASE_DIRECT_URL")
	}
	p, err := newPools(ctx, url, direct, total, pooled, directPooled)
	if err == nil && !pooled {
		p.warnOfLimit(ctx, total, log)
	}
	return p, err
}

// warnOfLimit says so if the role may have fewer connections than a server opens: later,
// statements would fail one by one.
func (p *Pools) warnOfLimit(ctx context.Context, total int32, log *slog.Logger) {
	var (
		role  string
		limit int32
	)
	err := p.Engine.QueryRow(ctx, `SELECT rolname, rolconnlimit FROM pg_roles WHERE rolname = current_user`).Scan(&role, &limit)
	if err == nil && limit >= 0 && limit < total {
		log.LogAttrs(ctx, slog.LevelWarn, "the role may have fewer connections than this server opens: raise its CONNECTION LIMIT, or set pool_max_conns in the database URL",
			slog.String("role", role), slog.Int("connection_limit", int(limit)), slog.Int("needed_for_each_server", int(total)))
	}
}

// newPools makes the pools of so many connections. It does not wait for the database.
func newPools(ctx context.Context, url, direct secret.Value, total int32, pooled, directPooled bool) (*Pools, error) {
	if direct.Empty() {
		direct = url
	}
	p, s := Pools{}, split(total)
	var err error
	for _, one := range []struct {
		into **pgxpool.Pool
		url  secret.Value
		kind kind
	}{
		{&p.Heartbeat, url, kind{s.heartbeat, heartbeatDial, pooled}},
		{&p.Journal, url, kind{s.journal, 0, pooled}},
		{&p.Engine, url, kind{s.engine, 0, pooled}},
		{&p.API, url, kind{s.api, 0, pooled}},
		{&p.Direct, direct, kind{1, 0, directPooled}},
	} {
		if *one.into, err = newPool(ctx, one.url, one.kind); err != nil {
			p.Close()
			return nil, err
		}
	}
	return &p, nil
}

// Close closes all pools. It waits for the connections that are in use.
func (p *Pools) Close() {
	for _, pool := range p.named() {
		if pool.Pool != nil {
			pool.Close()
		}
	}
	if p.Direct != nil {
		p.Direct.Close()
	}
}

// namedPool is a pool with the name of its purpose in metrics.
type namedPool struct {
	*pgxpool.Pool
	name string
}

func (p *Pools) named() []namedPool {
	return []namedPool{{p.Heartbeat, "heartbeat"}, {p.Journal, "journal"}, {p.Engine, "engine"}, {p.API, "api"}}
}

const (
	// defaultTotal is how many connections a server opens at most if the URL does
	// not say (pool_max_conns): managed databases allow few.
	defaultTotal = 12
	// minTotal lets every purpose have one.
	minTotal = 5
	// spareFrom is from which number on the heartbeat and the writer get a second
	// connection. A statement that was cut off occupies its connection until the
	// database has heard of that, which takes long if the network swallows
	// packets: meanwhile the second one is opened.
	spareFrom = 8
)

// shares are how many connections each purpose may open.
type shares struct{ heartbeat, journal, engine, api int32 }

// split divides the connections, at least minTotal. One is left out: on it the server hears
// of changed listeners.
func split(total int32) shares {
	s := shares{heartbeat: 1, journal: 1}
	if total >= spareFrom {
		s = shares{heartbeat: 2, journal: 2}
	}
	rest := total - 1 - s.heartbeat - s.journal
	s.api = rest / 2
	s.engine = rest - s.api
	return s
}
