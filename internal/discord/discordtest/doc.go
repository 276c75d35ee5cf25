// Package discordtest is a simulated Discord: the REST calls that a gateway
// client makes before it connects, and the gateway itself, over real HTTP and
// real WebSockets on loopback. Tests, benchmarks and the demo share it.
//
// It promises to refuse what Discord refuses, with the same close code, and to
// tell what a client did that it must not do ([Server.Illegal]). It never
// checks how a client reacts: tests do, with the log, the counts and the
// waits, which are signals and never polls. It knows nothing of the rest of
// the program, so that a mistake there can't hide itself here.
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
// What there is to script with:
//
//	Dispatch, DispatchFrame, DispatchGuild, Broadcast   events; kept for replay while the client is away
//	Do(shard, actions...)                               faults now, behind everything dispatched so far
//	Arm(moment, shard, times, actions...)               faults at a moment to come
//	SetShards, SetSessionStart, SetFlags                what the REST calls answer from now on
//	WaitReady, WaitConnected, WaitIdentify, WaitResume, WaitAcked, WaitCount
//	TokenOf, Suspend, Continue                          several clients of one bot, one of which is stopped
//	Log, Count, Illegal, Dispatched, Session, Sessions  what happened
//
// Actions: Reconnect (op 7), Invalidate (op 9), RequestHeartbeat (op 1), Close,
// Drop, Reset, Silence, Corrupt, TextFrame, Send, Delay, Skip, After, Status,
// RateLimit. Moments: AtGatewayBot, AtApplication, AtConnect, AtResumeConnect,
// AtHello, AtIdentify, AtResume, AtHeartbeat.
//
// Sessions outlive connections as they do at Discord: dispatches are numbered
// per session from READY on and kept for replay, RESUMED has a number too, and
// a connection is a cursor into what is kept. What a client is told when it
// breaks a rule, and what is chosen where Discord's documentation is silent,
// stands at Config, Close and in receive.go.
package discordtest
