package discordtest

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"time"
)

// AllIntents is the mask of every intent bit that Discord has assigned
// (Discord: Gateway, List of Intents); any other bit is refused with 4013.
const AllIntents = 53608447

// FlagsAll are the application flags of an application that may use every
// privileged intent: GATEWAY_PRESENCE, GATEWAY_GUILD_MEMBERS and
// GATEWAY_MESSAGE_CONTENT (Discord: Application Flags).
const FlagsAll = 1<<12 | 1<<14 | 1<<18

// Config says what the simulated Discord is like. The zero value is a small
// bot's: one shard, one IDENTIFY per 5 s, all privileged intents enabled.
type Config struct {
	// Token is the bot token that is accepted, without "Bot ". Default
	// "discordtest-token".
	Token string
	// ApplicationID and UserID are decimal ids. Defaults 1001 and 1002.
	ApplicationID, UserID uint64
	// Flags are the application's flags; they say which privileged intents
	// are enabled. Default FlagsAll; NoFlags for none.
	Flags int64
	// Guilds are the ids in READY's guilds, each on its shard.
	Guilds []uint64

	// Shards is what /gateway/bot recommends. Default 1.
	Shards int
	// SessionStart is what /gateway/bot says about session starts. Default
	// 1000 of 1000, reset after 24 h, max_concurrency 1.
	SessionStart SessionStart
	// IdentifyWindow is how long a bucket is taken by an IDENTIFY, measured
	// between arrivals and without tolerance: a client has to leave room for
	// the network's jitter. Default 5 s.
	IdentifyWindow time.Duration

	// HeartbeatInterval is what HELLO says. Default 41.25 s.
	HeartbeatInterval time.Duration
	// HeartbeatGrace is how long after the interval a heartbeat may come
	// before the connection is closed with 4000. Default half an interval,
	// at least 500 ms.
	HeartbeatGrace time.Duration

	// SessionLifetime is how long a session can be resumed after its
	// connection went away. Default 90 s.
	SessionLifetime time.Duration
	// ReplayLimit is how many dispatches a session keeps for replay. While
	// the client is away the oldest make room; while it is connected and
	// slower than the script, Dispatch waits. Default 65536.
	ReplayLimit int
	// TrimAcked drops from the replay what a heartbeat acknowledged: a
	// RESUME from before it is answered with op 9. Discord does not say
	// whether it does so.
	TrimAcked bool

	// Listen opens the two listeners. Default: on any ports of the loopback.
	// What it opens is closed by Close.
	Listen func() (net.Listener, error)
	// SplitEvery cuts every zlib-stream payload into WebSocket messages of
	// at most so many bytes; 0 sends it whole.
	SplitEvery int
	// Wants tells whether a session with these intents is sent an event of
	// this name; nil sends everything. It is called with a lock held: it
	// must be quick and not call the Server.
	Wants func(intents int64, name string) bool
	// Chunks answers a Request Guild Members (op 8) with the `d` of each
	// GUILD_MEMBERS_CHUNK; nil sends one chunk without members. It is called
	// with a lock held.
	Chunks func(request []byte) [][]byte
	// LogDispatches keeps a Record of every dispatch for Dispatched. It
	// grows without bound, by about 60 bytes a dispatch.
	LogDispatches bool
}

// NoFlags as Config.Flags means an application without any flag.
const NoFlags = -1

// SessionStart is Discord's session start limit object. The zero value means
// 1000 of 1000 left, reset after 24 h, one IDENTIFY at a time; if Total is set,
// the other fields mean what they say, but MaxConcurrency is at least 1.
type SessionStart struct {
	Total, Remaining int
	// ResetAfter is counted from Start or SetSessionStart; then Remaining is
	// Total again for 24 h.
	ResetAfter     time.Duration
	MaxConcurrency int
}

const day = 24 * time.Hour

func (l SessionStart) withDefaults() SessionStart {
	if l.Total == 0 {
		l.Total, l.Remaining, l.ResetAfter = 1000, 1000, day
	}
	l.MaxConcurrency = max(l.MaxConcurrency, 1)
	return l
}

func (c Config) withDefaults() Config {
	c.Token = cmp.Or(c.Token, "discordtest-token")
	c.ApplicationID = cmp.Or(c.ApplicationID, 1001)
	c.UserID = cmp.Or(c.UserID, 1002)
	c.Flags = cmp.Or(c.Flags, FlagsAll)
	if c.Flags == NoFlags {
		c.Flags = 0
	}
	c.Shards = cmp.Or(c.Shards, 1)
	c.SessionStart = c.SessionStart.withDefaults()
	c.IdentifyWindow = cmp.Or(c.IdentifyWindow, 5*time.Second)
	c.HeartbeatInterval = cmp.Or(c.HeartbeatInterval, 41250*time.Millisecond)
	c.HeartbeatGrace = cmp.Or(c.HeartbeatGrace, max(c.HeartbeatInterval/2, 500*time.Millisecond))
	c.SessionLifetime = cmp.Or(c.SessionLifetime, 90*time.Second)
	c.ReplayLimit = cmp.Or(c.ReplayLimit, 1<<16)
	if c.Listen == nil {
		c.Listen = func() (net.Listener, error) {
			return net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}) // any port
		}
	}
	return c
}

func (c Config) validate() error {
	var errs []error
	if c.Shards < 0 {
		errs = append(errs, fmt.Errorf("a Shards of %d: give 1 or more", c.Shards))
	}
	if c.HeartbeatInterval < time.Millisecond {
		errs = append(errs, fmt.Errorf("a HeartbeatInterval of %v: HELLO can't say less than 1ms", c.HeartbeatInterval))
	}
	if c.ReplayLimit < 1 {
		errs = append(errs, fmt.Errorf("a ReplayLimit of %d: give 1 or more", c.ReplayLimit))
	}
	if c.SplitEvery < 0 {
		errs = append(errs, fmt.Errorf("a SplitEvery of %d: give 0 or more", c.SplitEvery))
	}
	return errors.Join(errs...)
}
