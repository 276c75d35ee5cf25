// Package discord speaks Discord's gateway protocol over one connection, and
// makes the few REST calls that a gateway client needs.
//
// A [Dialer] opens connections. A [Conn] inflates what Discord sends and
// returns it as [Frame]s, and sends commands as JSON. A [CloseCode] answers
// what follows from the end of a connection. A [REST] asks which application a
// token belongs to and where to connect.
//
// It promises that the bytes of a payload's d are returned as Discord sent
// them, that a hostile payload cannot fill the memory, that no write, close or
// dial waits without a limit, and that the token follows no redirect.
//
// It never reconnects, resumes, sends a heartbeat or starts a goroutine that
// outlives a call: when to do what is up to the caller. It stores nothing,
// logs nothing and registers no metrics.
//
// Whoever dials a Conn ends it: Close first, Release once no Read is under
// way. Whoever makes a REST closes it. A Dialer holds nothing that has to be
// closed.
package discord
