package event

import "testing"

func TestRedactTokens(t *testing.T) {
	t.Parallel()
	const data = `{"id":"5","data":{"token":"a custom id"}, "token" : "aW50ZXJh\/Y3Rpb24"}`
	tests := []struct{ text, data, want string }{
		{data, data, `{"id":"5","data":{"token":"a custom id"}, "token" : "[redacted]"}`},
		{`aW50ZXJh/Y3Rpb24, and aW50ZXJh/Y3Rpb24 again`, data, `[redacted], and [redacted] again`},
		// A token that is cut off is redacted, but not a word that begins like one.
		{`token=aW50ZXJh`, data, `token=[redacted]`},
		{`token=aW50ZXJh\`, data, `token=[redacted]`},
		{`token=aW50ZXJh/Y3`, data, `token=[redacted]`},
		{`token=aW50ZXJ`, data, `token=aW50ZXJ`},
		{`aW50ZXJh is no token`, data, `aW50ZXJh is no token`},
		{`out of order`, data, `out of order`},
		{``, data, ``},
		// Payloads that are not as documented, or have no token.
		{`one two`, `{"token":"one","token":"two"}`, `[redacted] [redacted]`},
		{`null`, `{"token":null}`, `null`},
		{`7`, `{"token":7}`, `7`},
		{`x`, `{"token":""}`, `x`},
		{`abc`, `{"token":"abc`, `abc`},
		{`abc`, `{"token":"abc"`, `[redacted]`},
		{`token`, `["token"]`, `token`},
		{`token`, ``, `token`},
	}
	for _, tt := range tests {
		if got := string(RedactTokens([]byte(tt.text), []byte(tt.data))); got != tt.want {
			t.Errorf("%s of %s: %s, want %s", tt.text, tt.data, got, tt.want)
		}
	}
}
