// Package identify decides which shard may IDENTIFY, and when.
//
// [Turns] lets the shards of this instance IDENTIFY one after the other per
// bucket, the most urgent [Class] first. It remembers what Discord refused, so
// that no other shard spends a session start on the same refusal. [Buckets] paces
// the IDENTIFYs of all instances through the database. [Grants] knows which
// privileged intents are switched on.
//
// It promises that, however many instances share a token, no bucket gets two
// IDENTIFYs within 5 s (Discord: Max Concurrency), and that a twentieth of the
// day's session starts is never spent (Discord: Session Start Limit Object).
// A start leaves what the more urgent classes may need.
//
// [Budget] decides, without a clock, a lock or the network: how many starts each
// class must leave, whether a new set of shards can be warmed to its last shard,
// and how far apart the starts of one shard have to be.
//
//	class         why a session begins                 starts that it leaves
//	ClassLost     a delivering shard lost its session  a twentieth of the day's
//	ClassFirst    a delivering shard had none yet      the same
//	ClassIntents  a session needs more intents         the same, and one for each
//	                                                   delivering shard
//	ClassWarming  another set still delivers           one for each delivering shard,
//	                                                   and a twentieth, or as many
//	                                                   again if that is more
//
// It never connects to the gateway and never sends an IDENTIFY. The shards do,
// in this order: RefreshGrants, Turn, Allowed, the dial, Turn.Permit, Allowed once
// more, Turn.Holds, the IDENTIFY, Turn.Sent, Turn.Release. If Discord refuses an IDENTIFY, they pass the
// close code to Refuse.
//
// It owns the tables identify_buckets and session_starts. It starts no
// goroutine and has nothing to close.
package identify
