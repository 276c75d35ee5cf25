package gateway

import "time"

// timing is how long things take. Tests can't wait that long.
type timing struct {
	// hello is how long HELLO may take to come.
	hello time.Duration
	// reconnect is the first wait before a reconnect; later ones are longer.
	reconnect time.Duration
	// invalid is the shortest pause after op 9; the longest is five times it.
	invalid time.Duration
	// survey is how often is looked who has which shards.
	survey time.Duration
	// grants is how often is looked whether a missing intent was switched on.
	grants time.Duration
	// recommend is how often Discord is asked how many shards there should be.
	recommend time.Duration
	// overlap is how long two sets of shards receive the same before the first
	// one is let go: by so much may it be behind the other.
	overlap time.Duration
	// margin is by how much a dispatch may arrive earlier on one connection
	// than on another.
	margin time.Duration
	// notice is how long the journal may take for a SHARD_DISCONNECT.
	notice time.Duration
	// release bounds giving a shard back.
	release time.Duration
	// load is how long the guilds of a new session may take to come before it
	// takes over: its events begin with them, and one in an outage does not
	// come at all. settle is the time that a session gets instead which is not
	// told of its guilds, for want of the GUILDS intent.
	load, settle time.Duration
}

var usualTiming = timing{
	hello:     20 * time.Second,
	reconnect: 500 * time.Millisecond,
	invalid:   time.Second,
	survey:    time.Second,
	grants:    time.Minute,
	recommend: 10 * time.Minute,
	overlap:   5 * time.Second,
	margin:    2 * time.Second,
	notice:    time.Second,
	release:   5 * time.Second,
	load:      15 * time.Second,
	settle:    5 * time.Second,
}
