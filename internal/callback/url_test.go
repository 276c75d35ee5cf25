package callback_test

import (
	"strings"
	"testing"

	"github.com/gatehook/gatehook/internal/callback"
)

// TestParseURL: what is registered is what can be sent, in one form.
func TestParseURL(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"https://example.com":                   "https://example.com",
		"HTTPS://EXAMPLE.com:443/Path?A=b":      "https://example.com/Path?A=b",
		"http://example.com:080/":               "http://example.com/",
		"https://example.com:08443/":            "https://example.com:8443/",
		"https://example.com./x":                "https://example.com./x",
		"https://my_service:8443/x":             "https://my_service:8443/x",
		"https://BÜCHER.example/":               "https://xn--bcher-kva.example/",
		"https://bu\u0308cher.example/":         "https://xn--bcher-kva.example/",
		"https://bücher。example/":               "https://xn--bcher-kva.example/",
		"https://ｅｘａｍｐｌｅ．ｃｏｍ/":                  "https://example.com/",
		"https://faß.example/":                  "https://xn--fa-hia.example/",
		"https://xn--bcher-kva.example/":        "https://xn--bcher-kva.example/",
		"https://r3---sn-x.example/":            "https://r3---sn-x.example/",
		"https://b%C3%BCcher.example/":          "https://xn--bcher-kva.example/",
		"https://[2606:4700:0::0001]:443/x":     "https://[2606:4700::1]/x",
		"https://example.com/ü?q=ü&r=%C3%BC":    "https://example.com/%C3%BC?q=%C3%BC&r=%C3%BC",
		"https://example.com/?q=\"<>\xff'`{|}^": "https://example.com/?q=%22%3C%3E%FF'`{|}^",
		"https://example.com/a%2Fb/%e4?":        "https://example.com/a%2Fb/%e4?",
		"https://example.com//a/../b":           "https://example.com//a/../b",
	} {
		u, err := callback.ParseURL(raw)
		if err != nil {
			t.Errorf("%s: %v", raw, err)
			continue
		}
		if u.String() != want {
			t.Errorf("%s is %s, want %s", raw, u, want)
		}
		if again, err := callback.ParseURL(u.String()); err != nil || again.String() != u.String() {
			t.Errorf("%s is not normal: %v, %v", u, again, err)
		}
	}
	for _, raw := range []string{
		"", "https://", "https:///x", "https:example.com", "//example.com", "ftp://example.com", "https://exa mple.com", "https://example.com/a b",
		"https://example.com/\x00", "https://example.com:", "https://example.com:/", "https://example.com:x/", "https://example.com:65536/",
		"https://example.com:0/", "https://a..example/", "https://.example/", "https://./", "https://" + strings.Repeat("n", 64) + ".example/",
		"https://" + strings.Repeat("nnnnnnn.", 32) + "example/", "https://[fe80::1%25eth0]/", "https://[::1", "https://exa<mple.com/",
		"https://xn--zzzzzz-.example/", "https://a\u202eb.example/", "https://*.example/", "https://a,b.example/", "https://%00.example/",
	} {
		if u, err := callback.ParseURL(raw); err == nil {
			t.Errorf("%q is accepted as %s", raw, u)
		} else if strings.ContainsAny(err.Error(), "\n\x00") {
			t.Errorf("%q: %v", raw, err)
		}
	}
}

// FuzzParseURL: a normal URL is normal, and fits into a request line.
func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"https://BÜCHER.example:443/ü?q=ü", "http://[::ffff:1.2.3.4]:80/%zz", "https://a。b/?\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := callback.ParseURL(raw)
		if err != nil {
			return
		}
		again, err := callback.ParseURL(u.String())
		if err != nil || again.String() != u.String() {
			t.Errorf("%q is %s, and then %v, %v", raw, u, again, err)
		}
		for _, c := range []byte(u.RequestURI() + u.Host) {
			if c <= ' ' || c >= 0x7f {
				t.Errorf("%q is sent as %q to %q", raw, u.RequestURI(), u.Host)
			}
		}
	})
}
