package discordtest

import (
	"bytes"
	"testing"
)

// TestCut checks that only the last message of a payload looks like the end,
// whatever bytes the payload contains.
func TestCut(t *testing.T) {
	t.Parallel()
	for _, body := range []string{"", "x", "abcdefghijkl", "abc\x00\x00\xff\xff", "\x00\x00\xff\xff\x00\x00\xff\xff\xff\x00\x00\xff\xff", "ab\x00\x00\xff\xff\x00"} {
		flushed := append([]byte(body), suffix...)
		for split := range 20 {
			e := encoder{split: split}
			e.cut(flushed)
			if got := bytes.Join(e.messages, nil); !bytes.Equal(got, flushed) {
				t.Errorf("%q in pieces of %d: %q", flushed, split, e.messages)
			}
			for i, m := range e.messages {
				last := i == len(e.messages)-1
				if len(m) == 0 || bytes.HasSuffix(m, suffix) != last || split > 0 && len(m) > max(split, len(suffix)) {
					t.Errorf("%q in pieces of %d: %q", flushed, split, e.messages)
				}
			}
		}
	}
}
