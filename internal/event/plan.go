package event

import "time"

// ShardRange is a range of a set's shards: First to Last, both included, of Count.
type ShardRange struct{ First, Last, Count int }

// Plan says over how many shards an application's guilds are spread, and how far a
// change of that number has progressed. All instances of an application follow one
// plan. A change brings up a new set of shards beside the old one (Discord:
// Sharding).
type Plan struct {
	// Version grows with every change of the plan.
	Version int64
	// Current is the number of shards in the set that delivers.
	Current int
	// Next is the number of shards in the set that is being brought up; 0 for none.
	Next int
	// Previous is the number of shards in the set that delivered before; 0 for none.
	Previous int
	Phase    Phase
	// Age is how long ago the phase began.
	Age time.Duration
	// OverlapAt is when the last change reached Holding; zero for never.
	OverlapAt time.Time
	// HeldAt is when the last change reached Overlapping: from then on, the next set
	// kept whatever it received. Zero for never, or if an older build has made the
	// change since, which does not store it.
	HeldAt time.Time
}

// Phase is a step of the change from one set of shards to the next.
type Phase string

// The phases, in their order. After Switching the plan is Steady again, and the
// next set is the current one.
const (
	// Steady: there is one set.
	Steady Phase = "steady"
	// Warming: the next set connects. It drops the events that it receives:
	// the current set delivers them.
	Warming Phase = "warming"
	// Holding: the shards of the next set begin to keep the events that they receive.
	Holding Phase = "holding"
	// Overlapping: all shards of the next set keep their events, while the current
	// set still delivers.
	Overlapping Phase = "overlapping"
	// Switching: the current set is read to its end and closed.
	Switching Phase = "switching"
)

// Stage says how far one shard has progressed in the change from one set to the
// next.
type Stage string

// The stages.
const (
	// StageNone: the shard delivers, or has not reached any other stage yet.
	StageNone Stage = ""
	// StageReady: the shard is in the next set, and in service.
	StageReady Stage = "ready"
	// StageHolding: the shard keeps the events that it receives, and its cursor
	// does not move.
	StageHolding Stage = "holding"
	// StageEnded: the shard was read to its end. Nobody claims it again.
	StageEnded Stage = "ended"
)

// Survey says who owns the shards of a set. An instance is live until it has an heir or
// leaves: a lease that ran out takes nothing from anybody by itself.
type Survey struct {
	// Self is the number of this instance.
	Self int64
	// Peers are the live instances that share the same range of the set, Self
	// among them, in ascending order.
	Peers []int64
	// Owned are the shards of the set that Self owns. Free are the shards of the
	// range that no live instance owns and that have not ended.
	Owned, Free []int
	// Shards is how many shards of the set the live instances are willing to run.
	// Of these, Ready counts those in StageReady or StageHolding, Holding those in
	// StageHolding, and Ended those in StageEnded.
	Shards, Ready, Holding, Ended int
}

// Holder describes a live instance that owns a shard, for people.
type Holder struct {
	Name string
	// Stored is the sequence number up to which the shard's events are stored.
	Stored int64
}

// Digest identifies a dispatch by its content. The sessions of two sets number the
// same dispatch differently, so nothing else shows that both received it.
type Digest struct {
	Name string
	// Sum is the MD5 of the payload. It need not resist an attacker: both
	// copies come from Discord.
	Sum [16]byte
}

// Delivered is a dispatch that was passed on.
type Delivered struct {
	Digest
	// ReceivedAt and Late are those of the event. Nobody knows of a stored one whether
	// it was late.
	ReceivedAt time.Time
	Late       bool
}
