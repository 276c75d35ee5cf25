// Package identify decides which shard may IDENTIFY, and when.
//
// [Turns] lets the shards of this instance IDENTIFY one after the other per
// bucket. It remembers what Discord refused, so that no other shard spends a
// session start on the same refusal. [Buckets] paces the IDENTIFYs of all
// instances through the database. [Grants] knows which privileged intents are
// switched on.
//
// It promises that, however many instances share a token, no bucket gets two
// IDENTIFYs within 5 s (Discord: Max Concurrency), and that a twentieth of the
// day's session starts is never spent (Discord: Session Start Limit Object).
//
// It never connects to the gateway and never sends an IDENTIFY. The shards do,
// in this order: RefreshGrants, Turn, Allowed, the dial, Permit, Allowed once
// more, the IDENTIFY, release. If Discord refuses an IDENTIFY, they pass the
// close code to Refuse.
//
// It owns the tables identify_buckets and session_starts. It starts no
// goroutine and has nothing to close.
package identify
