// Package gateway keeps a bot's shards connected to Discord's gateway, and
// passes every dispatch on in the order in which its session numbers them.
//
// It promises:
//
//   - The d of a dispatch is passed on byte for byte.
//   - A session that can be resumed is resumed: after a broken connection, after
//     a restart, and when another instance takes over.
//   - For a session that could not be resumed, a GATEHOOK_SESSION_LOST says which
//     events are lost.
//   - A payload that cannot be read costs only itself, and a
//     GATEHOOK_PAYLOAD_DROPPED says so.
//   - IDENTIFYs keep to Discord's limits, however many instances share the token.
//
// It never ends a session on purpose: it closes with code 4900, not with 1000
// or 1001. It never waits for a callback. It waits for the journal only while
// the journal's queue is full, and keeps the connection alive meanwhile.
//
// # From Run to the journal
//
// "go" marks a goroutine; the function that starts it waits for its end. Two
// goroutines are not drawn: the one that closes a link, and the one that ends a
// tenure whose claim is lost.
//
//	Gateway.Run                     gateway.go   until the drain
//	  Gateway.discover                           asks Discord who the bot is
//	  go lapse.watch                lapse.go     leaves the sessions at the end of the lease
//	  fleet.run                     fleet.go     every second, and when intents change:
//	    fleet.step
//	      Store.Plan                             how many shards there are
//	      fleet.shareSet                         once per set of the plan
//	        Store.Survey                         who has which shards
//	        fleet.claim                          Store.Claim
//	          fleet.runShard                     a tenure begins
//	            go shard.run        shard.go     until the tenure ends
//	              go shard.guide    handover.go  only if another set delivers
//	              shard.keepConnected            one link after another
//	                shard.runLink   handover.go
//	                  go link.run   link.go      one connection
//	                    link.connect             waits for a turn, dials
//	                      link.dial              one URL after the other (urls.go)
//	                        shard.noteDial       dials.go: a failure is said
//	                    go link.load             waits for the guilds of a new session (loading.go)
//	                    link.receive             one payload after another
//	                      link.unread            what could not be read
//	                        link.drop            a notice says so
//	                      link.greet             HELLO: resumes, or go link.identify
//	                        go link.sendHeartbeats  heart.go
//	                      link.handle            the other ops
//	                      link.dispatch
//	                        link.putDispatch     the payload becomes an event
//	                          holding.put        holding.go, if there is one
//	                            outlet.put       outlet.go
//	                              Claim.Append   store.go: the journal
//	              shard.letGo                    Claim.Release, or End
//	      fleet.dismiss                          ends sets that are not in the plan
//	      Store.Replan                           the plan's next phase
//	  fleet.stop                                 Store.Withdraw, waits for all shards
//
// A command takes another path: [Commands] sends it over the connection of the
// guild's shard (command.go), or passes it through a [Relay] to the instance
// that runs that shard (command_relay.go).
//
// # Words
//
// A set is all shards with the same count, such as 0/4 to 3/4. The plan names
// the current set and, during a change, the next one.
//
// A claim is the right to run one shard. Other instances respect it until the
// owner's lease runs out.
//
// A tenure is the time from a claim to its release, during which this instance
// runs the shard.
//
// A link is one connection and the session that it carries. It is used once.
// Its reader handles payloads, its heart sends heartbeats.
//
// An outlet passes a tenure's events to the journal. It has the cursor: the
// position in the session up to which the journal was given everything.
//
// A holding sits in front of the outlet while another connection delivers the
// same events. While it is muted, it drops events; otherwise it keeps them.
// When it is opened, it passes on the kept events and all later ones, except
// for those that the other connection delivered.
//
// A notice is an event that Discord did not send, such as SHARD_CONNECT.
//
// # The states of a shard
//
//	StateStandby      from the end of a tenure to the next claim
//	StateConnecting   from the claim, or from a link without a session, to HELLO
//	StateIdentifying  from HELLO to READY
//	StateResuming     from a link with a session to RESUMED
//	StateConnected    from READY or RESUMED to the next link
//	StateFailed       from a close code that requires a person to act, to a retry,
//	                  or to other intents that may be allowed
//
// When a connection ends, the state is StateResuming if there is a session, and
// otherwise StateConnecting, or StateFailed. When the tenure ends, the state is
// StateStandby again.
//
// # Two ways to change over
//
// More intents need a new session of the same shard. shard.replace begins it on
// a second link, whose holding keeps everything. When the new session has its
// guilds, a last RESUME reads the old session to its end (shard.readToEnd).
// Then the holding is opened.
//
// Another number of shards needs a new set. The plan goes through these phases,
// and each instance follows it:
//
//	phase        current set  next set     until
//	Steady       dutyDeliver               an instance wishes for another number
//	Warming      dutyDeliver  dutyWarm     all shards of the next set are StageReady
//	Holding      dutyDeliver  dutyHold     all shards of the next set are StageHolding
//	Overlapping  dutyDeliver  dutyHold     timing.overlap has passed
//	Switching    dutyLeave    dutyHold     all shards of the current set are StageEnded
//	Steady                    dutyDeliver
//
// shard.guide marks the stages. The shard's holding is muted until
// StageHolding, then keeps everything, and is opened when the duty becomes
// dutyDeliver.
//
// In both cases, a holding that is opened leaves out what the old connection
// delivered (copies): an overlap remembers that of one link, and the journal has that
// of a set. A session has all of its guilds once none is missing, or none has come for
// a while (loading). All holdings of a server share one memory (room). While it is used
// up, their connections are not read.
//
// # Who decides
//
// These functions decide, without a clock, a lock or the network. The other
// functions carry out their decisions.
//
//	share       share.go     which shards to claim, how many to give back
//	wished      plan.go      the number of shards to wish for
//	advance     plan.go      the next phase of the plan
//	dutyOf      plan.go      what the shards of a set do under the plan
//	stageOf     handover.go  the stage of a shard of the next set
//	decide      closing.go   resume, identify or stop after a connection
//	lapseView.isAway  lapse.go  whether to leave the sessions, without a lease
//	pace.wait   pace.go      how long to wait before the next connection
//	pulse.beat  heart.go     whether a connection is dead
//	judge       advise.go    whether an event can come with some intents
//
// Package identify decides when a shard may IDENTIFY.
//
// # What a failure costs
//
// Discord keeps a session for a minute or so, and a resume costs nothing. So a
// shard resumes within seconds, first at the session's URL and then at the
// gateway's, with the session's compression (shard.urls).
//
// A session start costs one of those that all shards share. A shard whose
// sessions fail waits longer and longer before it begins the next one, and its
// failures are forgotten only after a minute of service. When half of the day's
// starts are used up, its tries are spread over the rest of the day.
//
// More intents that are needed within a few seconds are gathered for one session
// start (upgrades). A new set begins only if the starts left cover all of it
// (fleet.affordable).
package gateway
