package event

import "time"

// ShardRange is some shards of a set: First to Last, both included, of Count.
type ShardRange struct{ First, Last, Count int }

// Plan says over how many shards an application's guilds are spread, and how
// far a change of that number is. All instances of an application follow one
// plan. A change brings a new set of shards up beside the old one (Discord:
// Sharding).
type Plan struct {
	// Version grows with every change of the plan.
	Version int64
	// Current is the number of shards of the set that delivers.
	Current int
	// Next is that of the set that is being brought up; 0 for none.
	Next int
	// Previous is that of the set which delivered before Current; 0 for none.
	Previous int
	Phase    Phase
	// Age is how long ago the phase began.
	Age time.Duration
	// OverlapAt is when the last change came to Holding; zero for never.
	OverlapAt time.Time
}

// Phase is a step on the way from one set of shards to the next.
type Phase string

// The phases, in their order. From Switching it is back to Steady, and Next is
// Current.
const (
	// Steady: there is one set.
	Steady Phase = "steady"
	// Warming: the next set connects. What it receives is dropped: the
	// current one delivers it.
	Warming Phase = "warming"
	// Holding: the next set begins to keep what it receives.
	Holding Phase = "holding"
	// Overlapping: it does, all of it, while the current one still delivers.
	Overlapping Phase = "overlapping"
	// Switching: the current set is read to its end and let go.
	Switching Phase = "switching"
)

// Stage is how far one shard of a set is on that way.
type Stage string

// The stages.
const (
	// StageNone: it delivers, or it is not ready for anything else yet.
	StageNone Stage = ""
	// StageReady: of the next set, and in service.
	StageReady Stage = "ready"
	// StageHolding: it keeps what it receives, and its cursor stays.
	StageHolding Stage = "holding"
	// StageEnded: it was read to its end. Nobody takes it up again.
	StageEnded Stage = "ended"
)

// Survey tells how the shards of a set are held.
type Survey struct {
	// Self is the instance that asks.
	Self int64
	// Peers are the live instances that share the same range of the set, Self
	// among them, in ascending order.
	Peers []int64
	// Owned are the shards of the set that Self owns. Free are those of its
	// range that no live instance owns and that have not ended.
	Owned, Free []int
	// Shards counts those of the set that any live instance runs; the others
	// tell how many of them have reached a stage.
	Shards, Ready, Holding, Ended int
}

// Holder is a live instance that owns a shard, as people see it.
type Holder struct {
	Name string
	// Stored is the sequence number up to which the shard's events are stored.
	Stored int64
}

// Told is an event that a set delivered, reduced to what tells it from others.
type Told struct {
	Name string
	// Digest is the MD5 of the payload. It need not resist anybody: both
	// copies come from Discord.
	Digest [16]byte
}
