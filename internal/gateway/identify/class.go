package identify

// Class is why a shard begins a session. A smaller one is more urgent.
type Class int

// The classes.
const (
	// ClassLost: a shard that delivers lost its session. Its events are missing.
	ClassLost Class = iota
	// ClassFirst: a shard that delivers has had no session yet.
	ClassFirst
	// ClassIntents: a session goes on, but needs more intents.
	ClassIntents
	// ClassWarming: another set of shards delivers the events of this one.
	ClassWarming
)

// String returns the class in words.
func (c Class) String() string {
	return [...]string{"lost session", "first session", "more intents", "warming"}[c]
}
