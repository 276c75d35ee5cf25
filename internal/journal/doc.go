// Package journal keeps what was received and is not settled, and where every
// shard's session stands.
//
// It promises that an event reaches delivery only after the transaction that
// stores it, and that a session's cursor moves only in the transaction that
// stores the events before it. Whatever kills the process, Discord replays what
// was not stored, and what was stored is dispatched again until it is settled.
// The package never waits for a callback, and never decides what the outcome of a
// delivery means.
//
// # The way of an event
//
//	Claim.Append               claim.go    a shard hands over an event and its session's cursor
//	  queue.push               queue.go    waits while the queue is full
//
//	Journal.Run                journal.go  the one writer
//	  queue.take               queue.go    takes everything that waits
//	  Journal.collect          write.go    asks the Matcher who wants the event
//	  Journal.flush            write.go
//	    Journal.commit         write.go    repeats tryCommit until it succeeds
//	      Journal.tryCommit    write.go    waits for a valid lease and numbers the batch
//	        Journal.openClaims write.go    before a claim's first event: Deliverer.Prepare
//	        Journal.transact   write.go    cursors, the batch row and the events, in one transaction
//	    Journal.dispatch       write.go    Deliverer.Deliver
//
// Beside the writer, upkeep takes over from dead instances (Recover) and makes and drops
// partitions. A batch row lasts until delivery has settled all of the batch's
// deliveries (Store.Settle).
//
// # Batch numbers
//
// A batch's number is the clock at its commit in microseconds, shifted left by 10
// bits, with the low 10 bits of the instance's number. So it grows with time, and a range of numbers is a range of time, by which
// events are partitioned. Two instances could get the same number only if their own
// numbers differ by a multiple of 1024 and they commit in the same microsecond. An event's key is its batch's number and its place in the batch.
// Events without a batch (Store.Add) have places from 1<<30 on.
//
// # Leases, claims and epochs
//
// An instance has a lease and renews it every two seconds; without a valid lease it
// stores nothing. It claims shards, and each claim raises the shard's epoch. A
// commit moves a shard's cursor only if the row has the claim's epoch, so an
// instance that was paused and wakes up late can't store anything for a shard that
// another instance has claimed. An instance whose lease ran out gets at most one
// heir, which raises the epochs of its shards, takes over its batches and then
// frees the shards (see Recover).
//
// # Tables
//
// This package alone names instances, shards, shard_plans, events and batches.
package journal
