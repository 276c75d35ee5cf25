package postgres

import (
	"context"
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
}

const (
	// usualDial bounds a connect, if the URL does not. With TLS and a password, a
	// connect takes seven round trips.
	usualDial = 20 * time.Second
	// heartbeatDial bounds a connect of the heartbeat, whatever the URL says: after some
	// time, another try is worth more than a longer wait.
	heartbeatDial = 8 * time.Second
)

// OpenPools makes the pools. It does not wait for the database. The caller closes
// them.
func OpenPools(ctx context.Context, url secret.Value, log *slog.Logger) (*Pools, error) {
	total, err := totalOf(url)
	if err != nil {
		return nil, err
	}
	if total < minTotal {
		log.LogAttrs(ctx, slog.LevelWarn, "pool_max_conns is too small, using more connections",
			slog.Int("pool_max_conns", int(total)), slog.Int("used", minTotal))
	}
	s := split(total)
	var p Pools
	for _, one := range []struct {
		into **pgxpool.Pool
		most int32
		dial time.Duration // 0 for the usual one
	}{
		{&p.Heartbeat, s.heartbeat, heartbeatDial},
		{&p.Journal, s.journal, 0},
		{&p.Engine, s.engine, 0},
		{&p.API, s.api, 0},
	} {
		if *one.into, err = newPool(ctx, url, one.most, one.dial); err != nil {
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

// split divides the connections. One is left out: on it the server hears of changed
// listeners.
func split(total int32) shares {
	total = max(total, minTotal)
	s := shares{heartbeat: 1, journal: 1}
	if total >= spareFrom {
		s = shares{heartbeat: 2, journal: 2}
	}
	rest := total - 1 - s.heartbeat - s.journal
	s.api = rest / 2
	s.engine = rest - s.api
	return s
}
