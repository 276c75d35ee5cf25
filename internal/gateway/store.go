package gateway

import (
	"context"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// Store is what all instances of an application share: the plan of its shards,
// their leases and sessions.
type Store interface {
	// Plan returns the plan. The first one to ask makes it, with so many
	// shards.
	Plan(ctx context.Context, applicationID event.Snowflake, count int) (event.Plan, error)
	// Replan replaces a plan by another, and tells whether it did: not so if
	// another instance was faster.
	Replan(ctx context.Context, applicationID event.Snowflake, from, to event.Plan) (bool, error)
	// Survey tells how the shards of a range of a set are held, and lets the
	// other instances know which ones this one is willing to run: a range of
	// one set and all of any other; the zero value for all of any.
	Survey(ctx context.Context, applicationID event.Snowflake, r, willing event.ShardRange) (event.Survey, error)
	// Claim takes the leases on those shards that are free.
	Claim(ctx context.Context, applicationID event.Snowflake, shards []event.Shard) ([]Claim, error)
	// Withdraw tells the others that this instance will not take any shard.
	Withdraw(ctx context.Context) error
	// Holders names the instances that have the shards of a set, for people.
	Holders(ctx context.Context, applicationID event.Snowflake, count int) (map[int]event.Holder, error)
	// Told lists the dispatches that a set of shards handed on since a time,
	// for listeners that want them.
	Told(ctx context.Context, count int, since time.Time) ([]event.Told, error)
}

// Claim is the lease on one shard. It is used by one goroutine at a time, save
// for Stored, Lost and Mark.
type Claim interface {
	// Shard says which one it is.
	Shard() event.Shard
	// Session is where the session stood at the claim; the zero value means
	// that there is nothing to resume.
	Session() event.Session
	// Stage is how far the shard was at the claim.
	Stage() event.Stage
	// Append hands over an event together with where the session stands after
	// it; without an event only the latter. It blocks only while the journal's
	// queue is full.
	Append(ctx context.Context, session event.Session, e *event.Event) error
	// Stored is the highest committed sequence number of the session that was
	// appended to last; 0 for none.
	Stored() int64
	// Lost is closed when another instance has the lease.
	Lost() <-chan struct{}
	// Confirm returns an error if another instance has the lease. It may wait
	// some seconds for the answer after this process was paused.
	Confirm(ctx context.Context) error
	// Mark stores how far the shard is on the way from one set to the next.
	Mark(ctx context.Context, stage event.Stage) error
	// Release gives the lease back once all that was appended is committed.
	Release(ctx context.Context) error
	// End is Release for a shard whose session nobody takes up again.
	End(ctx context.Context) error
}
