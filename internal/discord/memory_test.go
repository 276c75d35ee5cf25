package discord

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"sync"
	"testing"
)

// quietServer upgrades every connection, sends it the same messages, and keeps it
// open with no more memory than the socket takes: so what a process with it and its
// clients uses is the clients'.
func quietServer(t *testing.T, messages ...[]byte) (url string, end func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it is closed below
	if err != nil {
		t.Fatal(err)
	}
	var open []net.Conn
	var mu sync.Mutex
	end = func() {
		_ = l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range open {
			_ = c.Close()
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			go serveQuietly(c, messages)
		}
	}()
	return "ws://" + l.Addr().String(), end
}

func serveQuietly(c net.Conn, messages [][]byte) {
	r, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return
	}
	const guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11" // RFC 6455, section 4.2.2
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + guid))
	_, _ = fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	for _, m := range messages {
		const binaryMessage, long = 0x82, 127
		head := binary.BigEndian.AppendUint64([]byte{binaryMessage, long}, uint64(len(m)))
		_, _ = c.Write(append(head, m...))
	}
}

// TestQuietConnectionIsSmall: a server may have thousands of shards, and most are
// quiet. A payload that was large once, or a burst, must not stay in memory.
func TestQuietConnectionIsSmall(t *testing.T) {
	const connections = 100
	for c, limit := range map[Compression]int{ZlibStream: 100 << 10, ZstdStream: 800 << 10, NoCompression: 100 << 10} {
		t.Run(string(c), func(t *testing.T) {
			payloads := [][]byte{bytes.Repeat(messageCreate, 1000)} // like the GUILD_CREATE of a large guild
			for range 300 {
				payloads = append(payloads, messageCreate)
			}
			messages := payloads
			if c != NoCompression {
				messages = nil
				d := newDeflater(t, c)
				for _, p := range payloads {
					messages = append(messages, d.message(t, p))
				}
			}
			url, end := quietServer(t, messages...)
			dialer := NewDialer(Config{Compression: c})
			before := inUse()
			var quiet, ended sync.WaitGroup
			for range connections {
				conn, err := dialer.Dial(t.Context(), url)
				if err != nil {
					t.Fatal(err)
				}
				quiet.Add(1)
				ended.Go(func() {
					defer conn.Release()
					for range payloads {
						if _, err := conn.Read(); err != nil && !isPayload(err) {
							t.Error(err)
						}
					}
					quiet.Done()
					_, _ = conn.Read() // until the end
				})
			}
			quiet.Wait()
			each := (inUse() - before) / connections
			end()
			ended.Wait()
			t.Logf("%s: a quiet connection takes %d KiB", c, each>>10)
			if each > limit {
				t.Errorf("%s: a quiet connection takes %d KiB, want less than %d KiB", c, each>>10, limit>>10)
			}
		})
	}
}

func isPayload(err error) bool {
	_, ok := errors.AsType[*PayloadError](err)
	return ok
}

// inUse returns how much memory heap and stacks use.
func inUse() int {
	for range 3 { // the first collections only empty the pools
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}
