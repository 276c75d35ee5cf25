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

// Config describes the simulated Discord. The zero value suits a small bot: one
// shard, one IDENTIFY per 5 s, all privileged intents enabled.
type Config struct {
	// Token is the accepted bot token, without "Bot ". Default
	// "discordtest-token".
	Token string
	// ApplicationID and UserID identify the application and its bot user.
	// Defaults 1001 and 1002.
	ApplicationID, UserID uint64
	// Flags are the application's flags, which enable privileged intents.
	// Default FlagsAll; NoFlags for none.
	Flags int64
	// Guilds are the guilds that READY lists, each on its own shard.
	Guilds []uint64

	// Shards is the number of shards that /gateway/bot recommends. Default 1.
	Shards int
	// SessionStart is the limit of session starts that /gateway/bot reports.
	// Default 1000 of 1000, reset after 24 h, max_concurrency 1.
	SessionStart SessionStart
	// IdentifyWindow is how long an IDENTIFY occupies its bucket. It is
	// measured between arrivals, without tolerance: a client has to leave
	// room for the network's jitter. Default 5 s.
	IdentifyWindow time.Duration

	// HeartbeatInterval is the interval that HELLO demands. Default 41.25 s.
	HeartbeatInterval time.Duration
	// HeartbeatGrace is how late a heartbeat may come after the interval
	// before the connection is closed with 4000. Default half an interval,
	// at least 500 ms.
	HeartbeatGrace time.Duration

	// SessionLifetime is how long a session can be resumed after its
	// connection ended. Default 90 s.
	SessionLifetime time.Duration
	// ReplayLimit is how many dispatches a session keeps for replay. While
	// the client is away, new dispatches push out the oldest. While it is
	// connected and slower than the script, Dispatch waits. Default 65536.
	ReplayLimit int
	// TrimAcked drops acknowledged dispatches from the replay: a RESUME from
	// before the last acknowledged one is answered with op 9. Discord does
	// not say whether it does this.
	TrimAcked bool

	// Listen opens each of the two listeners, which Server.Close closes.
	// Default: a free loopback port.
	Listen func() (net.Listener, error)
	// SplitEvery cuts every zlib-stream payload into WebSocket messages of
	// at most this many bytes; 0 sends each payload whole.
	SplitEvery int
	// Wants reports whether a session with these intents receives events of
	// this name; nil sends everything. It is called with a lock held, so it
	// must be quick and must not call the Server.
	Wants func(intents int64, name string) bool
	// Chunks answers a Request Guild Members (op 8) with the `d` of each
	// GUILD_MEMBERS_CHUNK; nil sends one chunk without members. It is called
	// with a lock held, so it must not call the Server.
	Chunks func(request []byte) [][]byte
	// LogDispatches keeps a Record of every dispatch for Dispatched. The
	// records grow without bound, by about 60 bytes per dispatch.
	LogDispatches bool
}

// NoFlags as Config.Flags gives the application no flags at all.
const NoFlags = -1

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
		errs = append(errs, fmt.Errorf("invalid Shards %d: give 1 or more", c.Shards))
	}
	if c.HeartbeatInterval < time.Millisecond {
		errs = append(errs, fmt.Errorf("invalid HeartbeatInterval %v: HELLO can't say less than 1ms", c.HeartbeatInterval))
	}
	if c.ReplayLimit < 1 {
		errs = append(errs, fmt.Errorf("invalid ReplayLimit %d: give 1 or more", c.ReplayLimit))
	}
	if c.SplitEvery < 0 {
		errs = append(errs, fmt.Errorf("invalid SplitEvery %d: give 0 or more", c.SplitEvery))
	}
	return errors.Join(errs...)
}
