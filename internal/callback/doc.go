// Package callback makes signed POSTs to callbacks and reports their results.
//
// # What it is
//
// A [Client] makes the POSTs. A [Target] is a listener's callback, prepared once: its
// address, the header fields that never change, and its secrets. A [Result] is the
// result of one POST: a status, or the [Class] of the failure with an error that is
// safe to show. The package knows nothing about retries, or about the meaning of a
// status for a delivery. It takes the delivery's id and the event's name as strings.
//
//	Client.Send        client.go  the header, the POST, the excerpt of the response
//	  idlePool.take    idle.go    an idle connection of an earlier POST …
//	  dialer.connect   dial.go    … or a new one: directly or through a proxy, then TLS
//	    guard.check    guard.go   checks the very address that is about to be dialed
//	  conn.post        conn.go    writes the request, reads the response
//	  idlePool.put     idle.go    keeps the connection for the next POST
//	Client.Ping        ping.go    the same, for the PING of the format discord
//
// # What it promises
//
//   - A POST ends within its timeout, from the dial to the last byte of the response,
//     whatever the other side sends or leaves out. It also ends when its context does.
//   - A private, loopback, link-local, reserved or cloud metadata address is dialed
//     only if [Config.Allow] contains it. Of the ports below 1024, only 80 and 443 are
//     dialed. An address is checked when it is dialed, after its name was resolved. A
//     proxy resolves names itself, so the proxy must refuse such addresses.
//   - The text of an error contains neither the callback's path, nor a header, nor
//     anything that the callback sent. The kept response of a POST that was not
//     accepted contains none of the event's tokens.
//
// # What it never does
//
// The package follows no redirect. It repeats a POST in one case only: a kept connection
// ended before the first byte of an answer. Then the callback had closed it as idle.
//
// # Who owns what
//
// The Client owns its connections. [Client.Close] closes the kept ones; a POST in
// flight ends with its context. A Target owns nothing and needs no closing.
package callback
