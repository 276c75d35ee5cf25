package callback

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
)

var (
	errNotHTTP    = errors.New("the response is not one of HTTP/1.1")
	errTwoLengths = errors.New("the response has two different lengths (Content-Length)")
)

// salvage reads a response that net/http refuses, as far as it says what the callback
// means: the status, and the fields. How its body is delimited does not matter then, and
// the connection is not used again. Scripts and gateways send many oddities (Transfer-Encoding
// twice, lines without a colon), and a delivery that was accepted must not be repeated for
// days because of one.
func (c *conn) salvage() (a reply, err error) {
	seen := c.head
	for {
		head, rest, ok := cutHead(seen)
		if !ok {
			if seen, err = c.readHead(seen); err != nil {
				return a, err
			}
			continue
		}
		status, header, err := parseHead(head)
		if err != nil {
			return a, err
		}
		if status >= 200 || status == http.StatusSwitchingProtocols {
			return reply{status: status, header: header}, nil
		}
		seen = rest // it was an interim response
	}
}

// readHead reads more of a response's header.
func (c *conn) readHead(seen []byte) ([]byte, error) {
	if len(seen) >= maxHeader {
		return nil, errTooMuch
	}
	var b [4 << 10]byte
	n, err := c.Conn.Read(b[:])
	if n == 0 && err != nil {
		return nil, err //nolint:wrapcheck // failed describes it
	}
	return append(seen, b[:n]...), nil
}

// cutHead splits what was read of a response after its header, whose lines may end
// without a carriage return (RFC 9112, section 2.2).
func cutHead(seen []byte) (head, rest []byte, ok bool) {
	seen = bytes.TrimLeft(seen, "\r\n")
	for at := 0; ; {
		i := bytes.IndexByte(seen[at:], '\n')
		if i < 0 {
			return nil, nil, false
		}
		at += i + 1
		if end := bytes.TrimPrefix(seen[at:], []byte("\r")); len(end) > 0 && end[0] == '\n' {
			return seen[:at], end[1:], true
		}
	}
}

// parseHead parses a response's header, and skips lines that are no fields.
func parseHead(head []byte) (status int, header http.Header, err error) {
	first, fields, _ := strings.Cut(string(head), "\n")
	protocol, code, _ := strings.Cut(strings.TrimRight(first, "\r"), " ")
	code, _, _ = strings.Cut(strings.TrimLeft(code, " "), " ")
	if !strings.HasPrefix(protocol, "HTTP/") || len(code) != 3 || strings.Trim(code, "0123456789") != "" || code[0] == '0' {
		return 0, nil, errNotHTTP
	}
	status = int(code[0]-'0')*100 + int(code[1]-'0')*10 + int(code[2]-'0')
	header = make(http.Header)
	for line := range strings.Lines(fields) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
		}
	}
	lengths := header.Values("Content-Length")
	for _, length := range lengths {
		if length != lengths[0] {
			return 0, nil, errTwoLengths
		}
	}
	return status, header, nil
}
