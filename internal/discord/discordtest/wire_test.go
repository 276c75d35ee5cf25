package discordtest

import (
	"net"
	"slices"
	"testing"
)

// counter is a connection that records the size of every write.
type counter struct {
	net.Conn
	writes []int
}

func (c *counter) Write(p []byte) (int, error) {
	c.writes = append(c.writes, len(p))
	return len(p), nil
}

func TestCork(t *testing.T) {
	t.Parallel()
	var c counter
	w := newWire(&c)
	write := func(n int) {
		t.Helper()
		if m, err := w.Write(make([]byte, n)); m != n || err != nil {
			t.Fatalf("wrote %d of %d, %v", m, n, err)
		}
	}
	uncork := func() {
		t.Helper()
		if err := w.uncork(); err != nil {
			t.Fatal(err)
		}
	}
	write(1)
	w.cork()
	write(2)
	write(3)
	uncork()
	uncork()
	write(4)
	w.cork()
	write(maxCorked - 1)
	write(1)
	write(5)
	uncork()
	w.cork()
	write(6)
	w.muted.Store(true)
	write(7)
	uncork()
	if want := []int{1, 5, 4, maxCorked, 5}; !slices.Equal(c.writes, want) {
		t.Errorf("wrote %v, want %v", c.writes, want)
	}
}
