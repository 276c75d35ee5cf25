// Package delivery decides when and in which order deliveries are made, retries them,
// and records every attempt and outcome. A delivery is one event for one listener;
// package callback makes its POSTs.
//
// # What it promises
//
//   - Before a batch is deleted, each of its deliveries is delivered, has a row in the
//     table retries, or was dropped because its listener was deleted.
//   - A listener whose callback is slow or down delays no other.
//   - Deliveries of one ordering key follow each other, through retries, restarts and
//     the move of a shard to another instance.
//   - Memory is bounded: a lane holds a limited number of deliveries and bytes. All
//     other deliveries wait in the database.
//
// The package never starts a POST without a lease ([Instance]), and never deletes a
// batch that another instance has taken over.
//
// # From a committed batch to its record
//
//	Delivery.Deliver            dispatch.go    a batch that the journal just committed
//	  Delivery.dispatch         dispatch.go    one job per event and listener; the batch counts them
//	    lane.push               lane.go        the listener's lane takes the job …
//	      queue.push            queue.go       … into its queue: interactions first, background last
//	      orderKey.waiting      ordered.go     … or behind the current delivery of its ordering key
//	      recorder.put          recorder.go    … or, without room, into retries as a due row (spill, record.go)
//	      lane.startLocked      lane.go        starts a worker if fewer than pace.limit POSTs are in flight
//
//	go lane.work                lane.go        a worker, until the lane has no job for it
//	  lane.next                 lane.go        the next job, and the current registration
//	  Instance.Hold                            waits for the lease; lane.forsake drops a job that was taken over
//	  lane.attempt              attempt.go
//	    unattempted             decide.go      deleted, disabled, too old: no POST
//	    job.body                format.go      the payload, or its model, in the listener's format
//	    Delivery.send           attempt.go     callback.Client.Send: the POST
//	    decide                  decide.go      delivered, retried (and when), or final
//	  Delivery.condemn          disable.go     disables the listener after a 410 or days of failures
//	  lane.finish               lane.go
//	    lane.record             lane.go        hands the outcome to the recorder
//	    lane.finishOrderedLocked ordered.go    starts the key's next delivery, or moves the rest to retries
//	    lane.adaptLocked        lane.go        pace.after (pace.go): the limit, the pause, down or not
//
//	go recorder.run             recorder.go    one transaction after another
//	  recorder.gather           recorder.go    all waiting records, at most every 20 ms; at once if
//	                                           somebody waits for one
//	  recorder.write            recorder.go    repeats the transaction until it succeeds
//	    newStatements           statements.go  outcomes become columns; batches count down
//	    recorder.notices        recorder.go    GATEHOOK_DELIVERY_EXHAUSTED (notices.go)
//	    statements.queue        statements.go  attempts, retries, health, and Store.Settle for batches
//	                                           that counted down to 0
//
//	go Delivery.takeRetries     retries.go     the retry loop
//	  Delivery.takeDue          retries.go     when a retry is due (Delivery.due), at a wake, every second
//	    Delivery.withRoom       retries.go     which lanes have room; expirePaused for paused lanes
//	    Delivery.claim          claim.go       makes this instance the owner of due rows
//	    Delivery.loadEvents     retries.go     reads their events
//	    lane.pushTaken          lane.go        continues like lane.push
//	  Delivery.unparkKeys       ordered.go     ordering keys whose rows other instances finished
//	  Delivery.readHealth       health.go      which listeners are failing, according to all instances
//	  Delivery.upkeep           upkeep.go      partitions, rows past their retention
//
// decide (decide.go) decides about a retry. Schedule.wait (schedule.go) returns the time to
// wait after the attempt, Retry-After may lengthen it, and max_age may make the delivery
// expire instead. The recorder stores the delivery as a row with a due time, and takeDue
// takes it up again.
//
// # The states of a delivery
//
//	state       where it is                   what ends it
//	ready       lane.ready, in memory         a worker takes it: in flight. The lane goes down
//	                                          (drainLocked): waiting. This instance was declared
//	                                          dead (forsake): its heir makes the delivery.
//	behind      orderKey.waiting, in memory   the delivery before it is done: ready. That one has
//	                                          to be retried, or the key is surrendered: waiting.
//	in flight   a worker's lane.attempt       unattempted or decide: waiting, or one of the states
//	                                          below. The POST finishes even after Stop.
//	waiting     a row of retries, 'pending',  it is due and its lane has room (claim): ready, with
//	            owner NULL                    this instance as the row's owner. It is too old:
//	                                          expired. Its listener is deleted: dropped.
//	delivered   a row of attempts only        a replay or a retry makes it again
//	exhausted,  a row of retries in that      a replay or a retry makes it again; upkeep removes the
//	expired,    state                         row after the retention
//	unparsable
//	dropped     no row                        nothing
//
// A delivery is exhausted after the last attempt of the schedule, after a 410, and
// after a failed test call. A delivery that is ready or behind at Stop stays in the
// database.
//
// A delivery that is ready, behind or in flight also has a row if it was taken up from
// retries, or if its key was surrendered. A key is surrendered when its shard moves to
// another instance, when the key already has rows, when the lane or the key holds too
// much, or when a batch is inherited. If a delivery has no row, its batch stays in the
// database until all of the batch is settled. After a crash, the instance that takes
// the batch over dispatches it again (Delivery.Recover in takeover.go), except for the
// deliveries that attempts and retries already account for.
//
// handler.go implements the API calls. redeliver.go makes deliveries again, and
// books.go reads what is stored about them.
//
// # Who owns what
//
// [Delivery.Run] owns the recorder, the loop that takes up retries, and the workers; it
// returns when all have ended. After [Delivery.Stop] no POST starts; those in flight
// finish and are recorded. Canceling Run's context ends these as well. The lanes belong
// to the Delivery; a lane with nothing to do has no goroutine.
//
// The code ignores the error that Query returns, because reading the rows returns it
// again.
package delivery
