// Package discordtest is a simulated Discord: the REST calls that a gateway
// client makes before it connects, and the gateway itself, over real HTTP and
// real WebSockets on loopback. Tests, benchmarks and the demo share it.
//
// It refuses whatever Discord refuses, with the same close code, and records
// every rule that a client broke ([Server.Illegal]). It never checks how a
// client reacts: tests do that, with the log, the counts and the waits. A wait
// blocks until the event happens; it never polls. The package imports nothing
// of the rest of the program, so that a mistake there cannot hide behind the
// same mistake here.
//
// A script reads like this:
//
//	srv, err := discordtest.Start(discordtest.Config{})
//	defer srv.Close()
//	// point the client at srv.APIURL() with srv.Token()
//	session, err := srv.WaitReady(ctx, 0)
//	sent, err := srv.Dispatch(0, "MESSAGE_CREATE", []byte(`{"id":"1"}`))
//	err = srv.Do(0, discordtest.Drop())                   // on the live connection, now
//	srv.Arm(discordtest.AtResume, 0, 2, discordtest.Close(1005)) // on the next two RESUMEs
//	entry, err := srv.WaitResume(ctx, 0, 3)               // the third RESUME of shard 0
//
// The calls of a script:
//
//	Dispatch, DispatchFrame, DispatchGuild, Broadcast   send events; they are kept for replay while the client is away
//	Do(shard, actions...)                               cause faults now, after everything dispatched so far
//	Arm(moment, shard, times, actions...)               cause faults at a later moment
//	SetShards, SetSessionStart, SetFlags                change the answers of the REST calls
//	WaitReady, WaitConnected, WaitIdentify, WaitResume, WaitAcked, WaitCount
//	TokenOf, Suspend, Continue                          run several clients of one bot and stop one of them
//	Log, Count, Illegal, Dispatched, Session, Sessions  report what happened
//
// Actions: Reconnect (op 7), Invalidate (op 9), RequestHeartbeat (op 1), Close,
// Drop, Reset, Silence, Corrupt, TextFrame, Send, Delay, Skip, After, Status,
// RateLimit. Moments: AtGatewayBot, AtApplication, AtConnect, AtResumeConnect,
// AtHello, AtIdentify, AtResume, AtHeartbeat.
//
// Sessions outlive connections, as they do at Discord. A session numbers its
// dispatches, beginning with READY, and keeps them for replay; RESUMED has a
// number too. A connection is a cursor into the dispatches of its session.
// Config, Close and receive.go say how broken rules are answered, and how we
// decided where Discord's documentation is silent.
package discordtest
