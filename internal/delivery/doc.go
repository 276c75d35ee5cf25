// Package delivery decides when a delivery is made, how often, and in which order,
// and keeps the record of all of them. A delivery is one event for one listener;
// package callback makes its POSTs.
//
// # What it promises
//
//   - Before a batch is forgotten, each of its deliveries is delivered, has a row in the
//     table retries, or was dropped because its listener was deleted.
//   - A listener whose callback is slow or down delays no other.
//   - Deliveries of one ordering key follow each other, through retries, restarts and
//     the move of a shard to another instance.
//   - Memory is bounded: each lane holds as much as it has room for, and everything
//     else waits in the database.
//
// It never starts a POST without a lease ([Instance]), and never forgets a batch that
// another instance has taken over.
//
// # From a committed batch to its record
//
//	Delivery.Deliver            dispatch.go    a batch that the journal just committed
//	  Delivery.dispatch         dispatch.go    one job per event and listener, counted by the batch
//	    lane.push               lane.go        the listener's lane takes it …
//	      queue.push            queue.go       … into its queue: interactions first, background last
//	      orderKey.waiting      ordered.go     … or behind the delivery of its key that is under way
//	      recorder.put          recorder.go    … or there is no room: spill (record.go) makes it a due row
//	      lane.startLocked      lane.go        one more worker, while fewer than pace.limit are in flight
//
//	go lane.work                lane.go        a worker, until the lane has nothing for it
//	  lane.next                 lane.go        the next job, with the registration as it is now
//	  Instance.Hold                            waits for the lease; lane.forsake if the job was taken over
//	  lane.attempt              attempt.go
//	    unattempted             decide.go      deleted, disabled, too old: no POST
//	    job.body                format.go      the payload, or its model, in the listener's format
//	    Delivery.send           attempt.go     callback.Client.Send: the POST
//	    decide                  decide.go      delivered, retried (when), or final
//	  Delivery.condemn          disable.go     disables the listener: 410, or days of failures
//	  lane.finish               lane.go
//	    lane.record             lane.go        hands the outcome to the recorder
//	    lane.finishOrderedLocked ordered.go    moves the ordering key on, or into the database
//	    lane.adaptLocked        lane.go        pace.after (pace.go): the limit, the pause, down or not
//
//	go recorder.run             recorder.go    one transaction after the other
//	  recorder.gather           recorder.go    everything that waits, at most every 20 ms unless somebody
//	                                           waits for it
//	  recorder.write            recorder.go    tries until the database has it
//	    newStatements           statements.go  outcomes become columns; batches count down
//	    recorder.notices        recorder.go    GATEHOOK_DELIVERY_EXHAUSTED (notices.go)
//	    statements.queue        statements.go  attempts, retries, health, and Store.Settle for batches
//	                                           that counted down to 0
//
//	go Delivery.takeRetries     retries.go     rows of retries come back
//	  Delivery.takeDue          retries.go     at Delivery.due's time, at a wake, every second
//	    Delivery.withRoom       retries.go     which lanes have room; expirePaused for those that pause
//	    Delivery.claim          claim.go       marks rows that are due as this instance's
//	    Delivery.loadEvents     retries.go     reads their events
//	    lane.pushTaken          lane.go        from here on as after lane.push
//	  Delivery.unparkKeys       ordered.go     ordering keys whose rows other instances worked off
//	  Delivery.readHealth       health.go      which listeners fail, as other instances saw it
//	  Delivery.upkeep           upkeep.go      partitions, rows past their retention
//
// A retry is decided in decide (decide.go): Schedule.wait (schedule.go) gives the time to
// wait after the attempt, Retry-After may lengthen it, and max_age may end it. The
// recorder stores the delivery as a row with a due time, and takeDue takes it up again.
//
// # The states of a delivery
//
//	state       where it is                   what ends it
//	ready       lane.ready, in memory         a worker takes it: in flight. The lane goes down
//	                                          (drainLocked): waiting. This instance was taken for
//	                                          dead: its heir makes the delivery (forsake).
//	behind      orderKey.waiting, in memory   the delivery before it is accepted: ready. That one
//	                                          failed, or the key is surrendered: waiting.
//	in flight   a worker's lane.attempt       unattempted or decide: waiting, or one of the states
//	                                          below. After Stop, too, the POST finishes.
//	waiting     a row of retries, 'pending',  it is due and its lane has room (claim): ready, with
//	            owner NULL                    this instance as the row's owner. It is too old:
//	                                          expired. Its listener is deleted: dropped.
//	delivered   a row of attempts only        a replay or a retry makes it again
//	exhausted,  a row of retries in that      a replay or a retry makes it again; upkeep removes the
//	expired,    state                         row after the retention
//	unparsable
//	dropped     no row                        nothing
//
// After the last attempt of the schedule, after a 410 and after a failed test call a
// delivery is exhausted. What is ready or behind at Stop stays in the database.
//
// A delivery that is ready, behind or in flight has a row as well if it was taken up
// from retries (the row's owner says by whom), or if its key was surrendered: because
// the shard moves to another instance, because the key has rows already, or because the
// lane or the key holds too much. Otherwise its batch is in the database until it is
// settled. After a crash, the instance that takes the batch over dispatches it again
// (Delivery.Recover in takeover.go), except for the deliveries that attempts and retries
// already account for.
//
// The calls of the API that make deliveries again are in redeliver.go, those that show
// them in books.go and handler.go.
//
// # Who owns what
//
// [Delivery.Run] owns the recorder, the loop that takes up retries, and the workers; it
// returns when all have ended. After [Delivery.Stop] no POST begins, those in flight
// finish and are recorded. Canceling Run's context ends them too. The lanes belong to
// the Delivery; a lane with nothing to do has no goroutine.
//
// The code ignores the error that Query returns, because reading the rows returns it
// again.
package delivery
