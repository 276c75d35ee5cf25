package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// database is a PostgreSQL for one test, behind a proxy that can delay, stall and
// cut connections.
type database struct {
	*postgrestest.Server
	proxy *proxy
	url   string
}

func startDatabase(t *testing.T) *database {
	t.Helper()
	d := &database{Server: postgrestest.Start(t)}
	d.proxy, d.url = behindProxy(t, d.URL())
	return d
}

// behindProxy puts a proxy before a database, and returns how to connect through it.
func behindProxy(t *testing.T, url string) (*proxy, string) {
	t.Helper()
	cfg, err := pgconn.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	network, address := pgconn.NetworkAddress(cfg.Host, cfg.Port)
	p, err := startProxy(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	return p, fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", cfg.User, p.listener.Addr(), cfg.Database)
}

// proxy forwards TCP connections from the loopback to a server, and breaks them
// on request.
type proxy struct {
	listener         net.Listener
	network, address string
	ctx              context.Context
	end              context.CancelFunc
	wg               sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	conns  map[net.Conn]struct{}
	delay  time.Duration
	flow   chan struct{} // closed while bytes pass
	refuse bool
	// With trap set, the next bytes with it are the last that pass; trapped is closed
	// then.
	trap    []byte
	trapped chan struct{}
}

func startProxy(ctx context.Context, network, address string) (*proxy, error) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	p := &proxy{
		listener: l, network: network, address: address,
		conns: map[net.Conn]struct{}{}, flow: make(chan struct{}),
	}
	p.ctx, p.end = context.WithCancel(context.WithoutCancel(ctx)) // until close
	close(p.flow)
	p.wg.Go(p.accept)
	return p, nil
}

func (p *proxy) close() {
	p.end()
	_ = p.listener.Close() // ends accept
	p.away(true)
	p.wg.Wait()
}

// slow delays all bytes by d; 0 ends this.
func (p *proxy) slow(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// stall lets nothing pass, but keeps all connections open; false ends this.
func (p *proxy) stall(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on {
		p.flow = make(chan struct{})
	} else {
		close(p.flow)
	}
}

// stallAfter lets everything pass up to the next bytes that have a text in them, and
// then stalls. The channel is closed when it does.
func (p *proxy) stallAfter(text string) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trap, p.trapped = []byte(text), make(chan struct{})
	return p.trapped
}

// spring stalls if bytes that have just passed have the text of stallAfter in them.
func (p *proxy) spring(passed []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.trap != nil && bytes.Contains(passed, p.trap) {
		p.trap, p.flow = nil, make(chan struct{})
		close(p.trapped)
	}
}

// away cuts all connections and accepts none; false ends this.
func (p *proxy) away(on bool) {
	p.mu.Lock()
	p.refuse = on
	p.mu.Unlock()
	if on {
		p.cut()
	}
}

// cut resets all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // fails only if it is closed already
		}
		_ = c.Close() // as above
	}
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		if !p.keep(client) {
			_ = client.Close() // the error does not matter
			continue
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

// keep records an open connection; it returns false if none are accepted now.
func (p *proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *proxy) serve(client net.Conn) {
	server, err := new(net.Dialer).DialContext(p.ctx, p.network, p.address)
	if err != nil {
		p.drop(client)
		return
	}
	if !p.keep(server) {
		p.drop(client, server)
		return
	}
	p.wg.Go(func() { p.pass(server, client) })
	p.pass(client, server)
}

// pass copies until either side is closed, and closes both.
func (p *proxy) pass(from, to net.Conn) {
	defer p.drop(from, to)
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || !p.wait() {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
		p.spring(buf[:n])
	}
}

// wait blocks while the proxy delays or stalls; it returns false once the proxy is closed.
func (p *proxy) wait() bool {
	p.mu.Lock()
	delay, flow := p.delay, p.flow
	p.mu.Unlock()
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-p.ctx.Done():
		}
	}
	select {
	case <-flow:
		return true
	case <-p.ctx.Done():
		return false
	}
}

func (p *proxy) drop(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		delete(p.conns, c)
		_ = c.Close() // either side may have closed it
	}
}

// TestDrainRightAfterAFailover stops a server whose connections to the database have all
// just ended, as after a failover: its lease must end with it, and the exit status is 0.
func TestDrainRightAfterAFailover(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	db := startDatabase(t)
	p := newProcess(t, discord, "DATABASE_URL="+db.url)
	p.start()
	awaitReady(t, discord)
	db.proxy.away(true)
	db.proxy.away(false)
	p.drain()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, db.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx) //nolint:errcheck // only read from
	var leases int
	if err := conn.QueryRow(ctx, `SELECT count(*) FROM instances WHERE lease_until > now()`).Scan(&leases); err != nil || leases != 0 {
		t.Errorf("%d leases are left (%v)", leases, err)
	}
}

// TestDrainDuringAnOutage stops a server while its database is away: the drain ends in
// time, and the exit status is 0, because the next start does the rest.
func TestDrainDuringAnOutage(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	db := startDatabase(t)
	p := newProcess(t, discord, "DATABASE_URL="+db.url, "GATEHOOK_SHUTDOWN_TIMEOUT=3s")
	p.start()
	awaitReady(t, discord)
	db.proxy.away(true)
	p.drain()
	if out := p.output(); !strings.Contains(out, "could not end this server's lease") {
		t.Error("the log does not say that the lease is left")
	}
}
