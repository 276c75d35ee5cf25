// Package discord speaks Discord's gateway protocol over one connection, and
// makes the few REST calls that a gateway client needs.
//
// A [Dialer] opens connections. A [Conn] inflates what Discord sends and
// returns it as [Frame]s, and sends commands as JSON. A [CloseCode] says what
// to do after a connection has ended. A [REST] asks which application a token
// belongs to and where to connect.
//
// It promises that the bytes of a payload's d are returned as Discord sent
// them, that a hostile payload cannot fill the memory, that no write, close or
// dial waits without a limit, and that the token is never sent along a
// redirect.
//
// It never reconnects, resumes or sends a heartbeat by itself, and starts no
// goroutine that outlives a call. It stores nothing, logs nothing and registers
// no metrics.
//
// The caller of Dial ends the Conn: Close first, Release once no Read is under
// way. The caller of NewREST closes the REST. A Dialer holds nothing that has
// to be closed.
package discord
