// Package callback makes one signed POST to a callback and reports what came of
// it.
//
// # What it is
//
// A [Client] makes the POSTs. A [Target] is a listener's callback, prepared once:
// where it is, the header fields that never change, and its secrets. A [Result] is
// what one POST saw: a status, or the [Class] of the failure with an error that is
// safe to show. The package knows neither retries nor what a status means for a
// delivery; it takes the delivery's id and the event's name as strings.
//
//	Client.Send        client.go  the header, the POST, the excerpt of the response
//	  idlePool.take    idle.go    a connection that an earlier POST left
//	  dialer.connect   dial.go    or a new one: directly or through a proxy, then TLS
//	    guard.check    guard.go   asked with the very address that is about to be dialed
//	  conn.post        conn.go    writes the request, reads the response
//	  idlePool.put     idle.go    keeps the connection for the next POST
//	Client.Ping        ping.go    the same, for the PING of the format discord
//
// # What it promises
//
//   - A POST ends within its timeout, from the dial to the last byte of the response,
//     whatever the other side sends or leaves out. It also ends when its context does.
//   - A private, loopback, link-local, reserved or cloud metadata address is dialed only
//     if [Config.Allow] contains it. Of the ports below 1024, only 80 and 443 are
//     dialed. Addresses are checked at the dial, after the name was resolved. A proxy
//     resolves names itself, so it has to refuse such addresses itself.
//   - An error's text holds neither the callback's path nor a header nor anything that
//     the callback sent. The response of a POST that was not accepted holds none of the
//     event's tokens.
//
// # What it never does
//
// It follows no redirect, sends nothing twice, and gives no POST a second try: a
// POST that fails on a kept connection has failed.
//
// # Who owns what
//
// The Client owns its connections: the kept ones end with [Client.Close], a POST
// under way with its context. A Target owns nothing and needs no end.
package callback
