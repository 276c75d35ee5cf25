package callback_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/callback"
)

// listen is a server that decides about each byte of its connections, which are numbered
// from 1.
func listen(t *testing.T, l net.Listener, serve func(n int, c net.Conn)) (address string) {
	t.Helper()
	var n atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close() //nolint:errcheck // the other side has gone
				serve(int(n.Add(1)), c)
			}()
		}
	}()
	t.Cleanup(func() {
		l.Close() //nolint:errcheck // ends Accept
		<-done
	})
	return l.Addr().String()
}

func loopbackListener(t *testing.T) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// request reads one request.
func request(in *bufio.Reader) (body []byte, err error) {
	r, err := http.ReadRequest(in)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r.Body)
}

func gzipped(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(text))
	_ = w.Close()
	return b.String()
}

// TestOddAnswers: a delivery that was plainly accepted is delivered, however odd the rest
// of the response is. The other responses are explained in our own words.
func TestOddAnswers(t *testing.T) {
	t.Parallel()
	const ok = "HTTP/1.1 200 OK\r\n"
	for name, tt := range map[string]struct{ answer, problem string }{
		"identity and a length":    {ok + "Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok", ""},
		"chunked twice":            {ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", ""},
		"gzip, chunked":            {ok + "Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", ""},
		"the same length twice":    {ok + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", ""},
		"the same length in a row": {ok + "Content-Length: 2, 2\r\n\r\nok", ""},
		"two lengths":              {ok + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nok", "the response has two different lengths (Content-Length)"},
		"a length and chunks":      {ok + "Content-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", ""},
		"an empty length":          {ok + "Content-Length: \r\n\r\n", ""},
		"cut off early":            {ok + "Content-Length: 10\r\n\r\nok", "the connection was closed before the response was complete"},
		"chunks cut off early":     {ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "the connection was closed before the response was complete"},
		"cut off late":             {ok + "Content-Length: 5000\r\n\r\n" + strings.Repeat("x", 4000), ""},
		"a line without a colon":   {ok + "Server\r\nContent-Length: 2\r\n\r\nok", ""},
		"a name with spaces":       {ok + "X Powered By: me\r\nContent-Length: 2\r\n\r\nok", ""},
		"a space before the colon": {ok + "Server : me\r\nContent-Length: 2\r\n\r\nok", ""},
		"a name in UTF-8":          {ok + "X-Größe: 1\r\nContent-Length: 2\r\n\r\nok", ""},
		"a folded value":           {ok + "X-A: a\r\n  b\r\nContent-Length: 2\r\n\r\nok", ""},
		"an empty name":            {ok + ": x\r\nContent-Length: 2\r\n\r\nok", ""},
		"no reason":                {"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", ""},
		"HTTP/1.0":                 {"HTTP/1.0 200 OK\r\n\r\nok", ""},
		"HTTP/1.0 with chunks":     {"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nok", ""},
		"HTTP/2":                   {"HTTP/2 200\r\nContent-Length: 2\r\n\r\nok", ""},
		"line feeds only":          {"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", ""},
		"odd, line feeds only":     {"HTTP/1.1 200 OK\nServer\nContent-Length: 2\n\nok", ""},
		"204 with a body":          {"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok", ""},
		"205 with a body":          {"HTTP/1.1 205 Reset Content\r\nContent-Length: 2\r\n\r\nok", ""},
		"gzip":                     {ok + "Content-Encoding: gzip\r\nConnection: close\r\n\r\n" + gzipped("ok"), ""},
		"extensions and trailers":  {ok + "Transfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2;ext=1\r\nok\r\n0\r\nX-T: 1\r\n\r\n", ""},
		"hints":                    {"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + ok + "Content-Length: 2\r\n\r\nok", ""},
		"odd hints":                {"HTTP/1.1 103 Early Hints\r\nLink\r\n\r\n" + ok + "Content-Length: 2\r\n\r\nok", ""},
		"a long cookie":            {ok + "Set-Cookie: a=" + strings.Repeat("x", 9000) + "\r\nContent-Length: 2\r\n\r\nok", ""},
		"an odd, long header":      {ok + "Server\r\nX-Debug: " + strings.Repeat("x", 20_000) + "\r\nContent-Length: 2\r\n\r\nok", ""},
		"too long a header":        {ok + "X-Debug: " + strings.Repeat("x", 40_000) + "\r\nContent-Length: 2\r\n\r\nok", "the response is longer than Gatehook reads"},
		"a long body":              {ok + "Content-Length: 300000\r\n\r\n" + strings.Repeat("x", 300_000), ""},
		"chunks of one byte":       {ok + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\nx\r\n", 50_000) + "0\r\n\r\n", ""},
		"an unusual status":        {"HTTP/1.1 299 Miscellaneous\r\nContent-Length: 0\r\n\r\n", ""},
		"an empty line first":      {"\r\n" + ok + "Content-Length: 2\r\n\r\nok", ""},
		"no HTTP":                  {"SSH-2.0-OpenSSH_9.6\r\n\r\n", "the response is not one of HTTP/1.1"},
		"no number":                {"HTTP/1.1 OK\r\n\r\n", "the response is not one of HTTP/1.1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// As a script does: it reads the request and closes after its answer.
			address := listen(t, loopbackListener(t), func(_ int, c net.Conn) {
				if _, err := request(bufio.NewReader(c)); err == nil {
					_, _ = io.WriteString(c, tt.answer)
				}
			})
			s := newClient(t, testConfig(time.Minute))
			r := send(t, s, testListener("http://"+address))
			if tt.problem == "" && (r.Class != callback.Class2xx || r.Err != nil) {
				t.Errorf("%v, status %d, %v", r.Class, r.Status, r.Err)
			}
			if tt.problem != "" && (r.Err == nil || r.Err.Error() != tt.problem) {
				t.Errorf("%v, status %d: %v; want %s", r.Class, r.Status, r.Err, tt.problem)
			}
		})
	}
}

// TestOddRefusals: what an odd response asks for is understood.
func TestOddRefusals(t *testing.T) {
	t.Parallel()
	address := speaker(t, func(c net.Conn, done <-chan struct{}) {
		_, _ = io.WriteString(c, "HTTP/1.1 503 Busy\r\nServer\r\nretry-after : 7\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n")
		<-done
	})
	s := newClient(t, testConfig(time.Minute))
	if r := send(t, s, testListener("http://"+address)); r.Status != 503 || r.Err != nil || r.RetryAfter != "7" {
		t.Errorf("%+v", r)
	}
	if s.Idle() != 0 {
		t.Error("the connection is kept")
	}
}

// TestAnswerSplitAnywhere: it does not matter how a response is split into packets.
func TestAnswerSplitAnywhere(t *testing.T) {
	t.Parallel()
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nServer\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
	} {
		for at := 1; at < len(answer); at++ {
			address := speaker(t, func(c net.Conn, done <-chan struct{}) {
				_, _ = io.WriteString(c, answer[:at])
				time.Sleep(time.Millisecond)
				_, _ = io.WriteString(c, answer[at:])
				<-done
			})
			if r := send(t, newClient(t, testConfig(time.Minute)), testListener("http://"+address)); r.Class != callback.Class2xx || r.Err != nil {
				t.Errorf("%q, then %q: %d, %v", answer[:at], answer[at:], r.Status, r.Err)
			}
		}
	}
}

// TestAcceptedBeforeItIsSent: a callback that accepts first and reads afterwards gets the
// whole body. Only the callback itself, or the deadline, ends the sending earlier, and at
// the deadline the delivery was not made.
func TestAcceptedBeforeItIsSent(t *testing.T) {
	t.Parallel()
	body := bytes.Repeat([]byte("0123456789abcdef"), 12<<20/16)
	for name, tt := range map[string]struct {
		answer  string
		reads   bool // else it reads nothing
		closes  bool
		timeout time.Duration
		class   callback.Class
	}{
		"reads afterwards":           {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true, false, time.Minute, callback.Class2xx},
		"says that it closes":        {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", true, false, time.Minute, callback.Class2xx},
		"says much first":            {"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + strings.Repeat("x", 16<<20), true, false, time.Minute, callback.Class2xx},
		"closes without reading":     {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false, true, time.Minute, callback.Class2xx},
		"never reads":                {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false, false, 300 * time.Millisecond, callback.ClassTimeout},
		"refuses, and never reads":   {"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno", false, false, time.Minute, callback.Class5xx},
		"accepts oddly, never reads": {"HTTP/1.1 200 OK\r\nServer\r\n\r\n", false, false, 300 * time.Millisecond, callback.ClassTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := make(chan []byte, 1)
			end := make(chan struct{})
			defer close(end)
			address := listen(t, loopbackListener(t), func(_ int, c net.Conn) {
				in := bufio.NewReader(c)
				length := 0
				for line := ""; line != "\r\n"; {
					var err error
					if line, err = in.ReadString('\n'); err != nil {
						return
					}
					if value, ok := strings.CutPrefix(line, "content-length: "); ok {
						length, _ = strconv.Atoi(strings.TrimSpace(value))
					}
				}
				_, _ = io.WriteString(c, tt.answer)
				switch {
				case tt.reads:
					all := make([]byte, length)
					n, _ := io.ReadFull(in, all)
					got <- all[:n]
				case !tt.closes:
					<-end
				}
			})
			s := newClient(t, testConfig(tt.timeout))
			r := sendBody(t.Context(), t, s, testListener("http://"+address), body)
			if r.Class != tt.class {
				t.Errorf("%v, status %d, %v", r.Class, r.Status, r.Err)
			}
			if tt.reads {
				if b := <-got; !bytes.Equal(b, body) {
					t.Errorf("%d of %d bytes arrived", len(b), len(body))
				}
			}
		})
	}
}

// TestEndedAtThatMoment: a kept connection that the callback ends as the next POST
// arrives costs no attempt, if not a byte of an answer came.
func TestEndedAtThatMoment(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		says string
		ok   bool
	}{
		"without a word": {"", true},
		"after a byte":   {"H", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := listen(t, loopbackListener(t), func(_ int, c net.Conn) {
				in := bufio.NewReader(c)
				if _, err := request(in); err != nil {
					return
				}
				_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
				_, _ = in.Peek(1) // the next one is on its way
				_, _ = io.WriteString(c, tt.says)
			})
			s := newClient(t, testConfig(time.Minute))
			for i := range 6 {
				r := send(t, s, testListener("http://"+address))
				if want := tt.ok || i%2 == 0; (r.Class == callback.Class2xx) != want {
					t.Errorf("POST %d: %v, %v", i, r.Class, r.Err)
				}
			}
		})
	}
	t.Run("always", func(t *testing.T) {
		t.Parallel()
		var conns atomic.Int64
		address := listen(t, loopbackListener(t), func(_ int, c net.Conn) {
			conns.Add(1)
			_, _ = request(bufio.NewReader(c))
		})
		if r := send(t, newClient(t, testConfig(time.Minute)), testListener("http://"+address)); r.Class != callback.ClassConnection || conns.Load() != 1 {
			t.Errorf("%v, %v, %d connections: a new connection that ends is an attempt", r.Class, r.Err, conns.Load())
		}
	})
}

// TestMuteConnections: if one kept connection went mute, as behind a firewall that forgot
// it, the others cost no attempt.
func TestMuteConnections(t *testing.T) {
	t.Parallel()
	var mute atomic.Bool
	together := make(chan struct{})
	var first atomic.Int64
	address := listen(t, loopbackListener(t), func(n int, c net.Conn) {
		in := bufio.NewReader(c)
		for {
			if _, err := request(in); err != nil || mute.Load() && n <= 5 {
				_, _ = io.Copy(io.Discard, in)
				return
			}
			if n <= 5 && first.Add(1) == 5 {
				close(together) // so that there are five connections
			}
			<-together
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		}
	})
	s := newClient(t, testConfig(time.Second))
	results := make(chan callback.Result)
	for range 5 {
		go func() { results <- send(t, s, testListener("http://"+address)) }()
	}
	for range 5 {
		if r := <-results; r.Class != callback.Class2xx {
			t.Fatal(r.Err)
		}
	}
	mute.Store(true)
	failed := 0
	for range 5 {
		if r := send(t, s, testListener("http://"+address)); r.Class != callback.Class2xx {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("%d of 5 POSTs failed on connections that went mute; the first one tells", failed)
	}
}

// TestNothingIsLeftUnread: what follows a response, in whatever layer it waits, is not
// taken for the response to the next POST.
func TestNothingIsLeftUnread(t *testing.T) {
	t.Parallel()
	cert := certificate(t, func(*x509.Certificate) {})
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	more := "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	for name, writes := range map[string][]string{
		"in one piece":             {"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n" + more},
		"in another record":        {"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", more},
		"behind a long one":        {"HTTP/1.1 500 No\r\nContent-Length: 9000\r\n\r\n" + strings.Repeat("x", 9000) + more},
		"behind exactly a buffer":  {"HTTP/1.1 500 No\r\nX: " + strings.Repeat("x", 4096-46) + "\r\nContent-Length: 0\r\n\r\n" + more},
		"a body that may not be":   {"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n", "ok"},
		"a body without a length":  {"HTTP/1.1 204 No Content\r\n\r\n", "ok"},
		"chunks that may not be":   {"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", "2\r\nok\r\n0\r\n\r\n"},
		"a body of an interim one": {"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n" + more},
	} {
		for _, secure := range []bool{false, true} {
			t.Run(name+map[bool]string{true: ", TLS"}[secure], func(t *testing.T) {
				t.Parallel()
				l := loopbackListener(t)
				u := "http://" + l.Addr().String()
				cfg := testConfig(10 * time.Second)
				if secure {
					l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}}) //nolint:gosec // the defaults are right
					u, cfg.Roots = "https://"+l.Addr().String(), roots
				}
				wrote := make(chan struct{}, 100)
				listen(t, l, func(_ int, c net.Conn) {
					in := bufio.NewReader(c)
					for {
						if _, err := request(in); err != nil {
							return
						}
						for _, w := range writes {
							_, _ = io.WriteString(c, w)
						}
						wrote <- struct{}{}
					}
				})
				s := newClient(t, cfg)
				want, _ := strconv.Atoi(strings.Fields(strings.TrimPrefix(writes[0], "HTTP/1.1 103 Early Hints\r\n\r\n"))[1])
				for i := range 4 {
					if r := send(t, s, testListener(u)); r.Status != want || r.Err != nil {
						t.Errorf("POST %d: status %d instead of %d, %v", i, r.Status, want, r.Err)
					}
					<-wrote
					time.Sleep(5 * time.Millisecond) // the other record arrives
				}
			})
		}
	}
}

// TestFieldNamesAreLowerCase: the official libraries of PHP and Ruby look for them so.
func TestFieldNamesAreLowerCase(t *testing.T) {
	t.Parallel()
	heads := make(chan string, 1)
	address := listen(t, loopbackListener(t), func(_ int, c net.Conn) {
		in := bufio.NewReader(c)
		var head strings.Builder
		for line := ""; line != "\r\n"; head.WriteString(line) {
			var err error
			if line, err = in.ReadString('\n'); err != nil {
				return
			}
		}
		heads <- head.String()
		_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
	})
	l := testListener("http://" + address)
	l.Headers, l.Format = map[string]string{"x-discord-gateway-token": "T"}, "discord"
	if r := send(t, newClient(t, testConfig(time.Minute)), l); r.Err != nil {
		t.Fatal(r.Err)
	}
	lines := strings.Split(strings.TrimSpace(<-heads), "\r\n")[1:]
	names := make(map[string]bool)
	for _, line := range lines {
		name, _, _ := strings.Cut(line, ": ")
		if names[name] = true; name != strings.ToLower(name) {
			t.Errorf("%q is sent", line)
		}
	}
	for _, name := range []string{
		"host", "content-type", "content-length", "user-agent", "webhook-id", "webhook-timestamp", "webhook-signature",
		"gatehook-event", "gatehook-event-id", "gatehook-attempt", "gatehook-shard", "traceparent", "x-signature-ed25519", "x-signature-timestamp", "x-discord-gateway-token",
	} {
		if !names[name] {
			t.Errorf("%s is not sent", name)
		}
	}
}

// TestLongCertificate: a callback does not decide how long errors are.
func TestLongCertificate(t *testing.T) {
	t.Parallel()
	names := make([]string, 3000)
	for i := range names {
		names[i] = strings.Repeat("x", 60) + strconv.Itoa(i) + ".example"
	}
	srv, roots := startTLS(t, func(http.ResponseWriter, *http.Request) {}, func(c *tls.Config) {
		c.Certificates = []tls.Certificate{certificate(t, func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = names, nil })}
	})
	cfg := testConfig(time.Minute)
	cfg.Roots = roots
	for _, roots := range []*x509.CertPool{roots, x509.NewCertPool()} {
		cfg.Roots = roots
		r := send(t, newClient(t, cfg), testListener(srv.URL))
		if r.Class != callback.ClassTLS || r.Err == nil || len(r.Err.Error()) > 300 || strings.Contains(r.Err.Error(), "xxx") {
			t.Errorf("%v, %.500v", r.Class, r.Err)
		}
	}
}
