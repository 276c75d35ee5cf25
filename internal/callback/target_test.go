package callback

import (
	"strings"
	"testing"
)

// TestHosts checks which address is dialed for a URL, and which Host is sent.
func TestHosts(t *testing.T) {
	t.Parallel()
	for u, want := range map[string][2]string{
		"https://example.com/x?q=1":     {"example.com:443", "POST /x?q=1 HTTP/1.1\r\nhost: example.com\r\n"},
		"http://example.com":            {"example.com:80", "POST / HTTP/1.1\r\nhost: example.com\r\n"},
		"https://example.com:8443?q=ü":  {"example.com:8443", "POST /?q=%C3%BC HTTP/1.1\r\nhost: example.com:8443\r\n"},
		"https://bücher.example/ä%20b":  {"xn--bcher-kva.example:443", "POST /%C3%A4%20b HTTP/1.1\r\nhost: xn--bcher-kva.example\r\n"},
		"https://[2606:4700::1]:8443/x": {"[2606:4700::1]:8443", "POST /x HTTP/1.1\r\nhost: [2606:4700::1]:8443\r\n"},
		"https://[2606:4700::1]/x":      {"[2606:4700::1]:443", "POST /x HTTP/1.1\r\nhost: [2606:4700::1]\r\n"},
	} {
		got, err := NewTarget(testListener(u))
		if err != nil {
			t.Errorf("%s: %v", u, err)
			continue
		}
		if got.address != want[0] || !strings.HasPrefix(string(got.head), want[1]) {
			t.Errorf("%s: %s, %q; want %q", u, got.address, got.head, want)
		}
	}
	l := testListener("https://example.com")
	l.Headers = map[string]string{"x": "a\r\nGatehook-Event: forged"}
	if _, err := NewTarget(l); err == nil || strings.Contains(err.Error(), "forged") {
		t.Errorf("a header of two lines: %v", err)
	}
}
