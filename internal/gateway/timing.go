package gateway

import "time"

// timing is how long things take. Tests use shorter times than usualTiming.
type timing struct {
	// hello bounds the wait for HELLO.
	hello time.Duration
	// resume bounds the dial of a session's URL, and then the wait for HELLO, so
	// that another URL can be tried while the session lives.
	resume time.Duration
	// reconnect is the first wait before a reconnect; the next ones are longer.
	reconnect time.Duration
	// start is the first wait after a failed session start; the next ones are
	// longer.
	start time.Duration
	// gather is how long more intents are awaited before a session with more
	// intents begins.
	gather time.Duration
	// invalid is the shortest pause after op 9; the longest is five times it.
	invalid time.Duration
	// survey is how often to check which instance owns which shard.
	survey time.Duration
	// lease is how often to check the lease.
	lease time.Duration
	// stopped is the time between two checks after which this process counts as having
	// been stopped.
	stopped time.Duration
	// alone is for how long no other server was there before this one counts as alone.
	alone time.Duration
	// lapsed is for how long after the end of the lease sessions are left alone.
	lapsed time.Duration
	// grants is how often to check whether a missing intent was switched on.
	grants time.Duration
	// recommend is how often to ask Discord for its recommended number of
	// shards.
	recommend time.Duration
	// overlap is how long two sets of shards receive the same events before the
	// old set ends. The old set may lag behind the new one by this much.
	overlap time.Duration
	// margin is how much earlier a dispatch may arrive on one connection than
	// on another.
	margin time.Duration
	// notice bounds the wait for the journal to take a SHARD_DISCONNECT.
	notice time.Duration
	// release bounds the release of a claim. A slow database may take seconds for each of
	// its round trips.
	release time.Duration
	// begin bounds what a session start waits for the database.
	begin time.Duration
	// load is how long a new session waits for its next guild before it takes over,
	// and loadBound for all of them. Its events begin with the guilds, but a guild in
	// an outage may never come. settle replaces load for a session without the GUILDS
	// intent, which receives no guilds.
	load, loadBound, settle time.Duration
}

var usualTiming = timing{
	hello:     20 * time.Second,
	resume:    5 * time.Second,
	reconnect: 500 * time.Millisecond,
	start:     5 * time.Second,
	gather:    5 * time.Second,
	invalid:   time.Second,
	survey:    time.Second,
	lease:     250 * time.Millisecond,
	stopped:   2 * time.Second,
	alone:     10 * time.Minute,
	lapsed:    50 * time.Second,
	grants:    time.Minute,
	recommend: 10 * time.Minute,
	overlap:   5 * time.Second,
	margin:    2 * time.Second,
	notice:    time.Second,
	release:   12 * time.Second,
	begin:     5 * time.Second,
	load:      15 * time.Second,
	loadBound: 2 * time.Minute,
	settle:    5 * time.Second,
}
