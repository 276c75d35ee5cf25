// Package journal stores received events until their deliveries are settled, and
// the cursor of each shard's session.
//
// An event reaches delivery only after the transaction that stores it, and a
// session's cursor moves in the transaction that stores the events before it, or
// later. However the process dies, Discord replays the events that were not stored,
// and stored events are dispatched again until their deliveries are settled. The
// package never waits for a callback and never interprets a delivery's outcome.
//
// # The path of an event
//
//	Claim.Append               claim.go    a shard hands over an event and its session's cursor
//	  queue.push               queue.go    waits while the queue is full
//
//	Journal.Run                journal.go  the one writer
//	  queue.take               queue.go    takes all waiting entries
//	  Journal.collect          write.go    asks the Matcher who wants the event
//	  Journal.flush            write.go    takes the cursors along if they are due (Journal.takeCursors)
//	    Journal.commit         write.go    repeats tryCommit until it succeeds
//	      Journal.tryCommit    write.go    waits for a valid lease and numbers the batch
//	        Journal.transact   write.go    the batch row, the events and the fence, in one transaction
//	    Journal.dispatch       write.go    Deliverer.Deliver
//
// Besides the writer, Run starts upkeep, which takes over from dead instances
// (Recover) and creates and drops partitions. A batch's row is deleted once all of
// the batch's deliveries are settled (Store.Settle).
//
// # Batch numbers
//
// A batch's number is the time of its commit (Instance.Now) in microseconds, shifted
// left by 10 bits, plus the instance's slot. So batch numbers grow with time, and a
// partition of events, which holds a range of numbers, covers a range of time. No two
// rows of instances have the same slot: an instance takes the smallest free one when it
// joins, and it is free again when its estate is settled. An event's key is its batch's
// number and its place in the batch. Events without a batch (Store.Add) have places of
// 1<<30 and above.
//
// # Leases, claims and epochs
//
// Each instance has a lease, which it renews every two seconds; without a valid
// lease it stores nothing. An instance whose lease ran out gets at most one heir. The
// heir ends the dead instance's connections, raises the epochs of its shards, takes
// over its batches and then frees the shards (see Recover).
//
// Each commit, and each other change of a shard's row, proves that the instance has no heir
// (Store.ProveAlive), so an instance that was paused can't change anything of a shard that
// another instance has claimed meanwhile. Each commit also finds the batch that the instance
// stored before: otherwise the database has lost commits, and all shards are claimed again.
//
// # Cursors
//
// The cursors that moved are stored once a second, when a session begins or ends, when a
// shard is released, and with the first event after a claim. A claim continues after the
// cursor or the newest stored event of its session, whichever is later. Each claim raises the
// shard's epoch, and a cursor is stored only if the shard's row has the claim's epoch, and
// shows the cursor that the claim stored before. So with the first event the claim is
// found to be there, and afterwards it can't be lost without the batch of that event.
//
// # Tables
//
// Only this package accesses instances, shards, shard_plans, events and batches.
package journal
