package gateway

import (
	"context"
	"time"

	"github.com/gatehook/gatehook/internal/event"
)

// Store is what all instances of an application share: the plan of its shards,
// who has claimed them, and their sessions. All methods are safe for concurrent
// use.
type Store interface {
	// Plan returns the plan. If there is none, it makes one with count shards.
	Plan(ctx context.Context, applicationID event.Snowflake, count int) (event.Plan, error)
	// Replan replaces the plan. It returns false, and changes nothing, if another
	// instance has changed the plan meanwhile.
	Replan(ctx context.Context, applicationID event.Snowflake, from, to event.Plan) (bool, error)
	// Survey returns who owns the shards of the set that r belongs to. It also
	// tells the other instances which shards this one is willing to run: a range
	// of one set, and all shards of any other set. The zero value of willing
	// means all shards of any set.
	Survey(ctx context.Context, applicationID event.Snowflake, r, willing event.ShardRange) (event.Survey, error)
	// Claim claims those of the shards that are free or already claimed by this
	// instance, and that have not ended. The caller releases each claim.
	Claim(ctx context.Context, applicationID event.Snowflake, shards []event.Shard) ([]Claim, error)
	// Withdraw tells the other instances that this one will not claim any shard.
	Withdraw(ctx context.Context) error
	// Lease returns how long this instance's claims are still its own for certain, and
	// for how long that is renewed. After the end, left is negative: others may claim
	// its shards.
	Lease() (left, length time.Duration)
	// Holders returns, for people, which instance owns each shard of a set.
	Holders(ctx context.Context, applicationID event.Snowflake, count int) (map[int]event.Holder, error)
	// Delivered returns the dispatches that a set of shards passed on since a
	// time and that a listener wants, in order.
	Delivered(ctx context.Context, count int, since time.Time) ([]event.Delivered, error)
}

// Claim is the right to run one shard. One goroutine at a time uses it, except
// that Stored, Lost, Confirm, Begin and Mark are safe for concurrent use.
type Claim interface {
	// Shard returns the claimed shard.
	Shard() event.Shard
	// Session returns the session and the position in it, as stored when the
	// shard was claimed. The zero value means that there is nothing to resume.
	Session() event.Session
	// Stage returns the stage of the shard when it was claimed.
	Stage() event.Stage
	// Begun reports whether, when the shard was claimed, the last thing stored was
	// that a session begins (see Begin).
	Begun() bool
	// Begin stores that a session begins. The first event that is committed with
	// it, or the release of the claim, undoes that.
	Begin(ctx context.Context) error
	// Unbegin takes Begin back: the IDENTIFY began no session.
	Unbegin(ctx context.Context) error
	// Append hands over an event and the position in the session after it; if e
	// is nil, only the position. It blocks only while the journal's queue is
	// full.
	Append(ctx context.Context, session event.Session, e *event.Event) error
	// Stored returns the highest committed sequence number of the session that
	// was appended last; 0 for none.
	Stored() int64
	// Lost is closed when another instance has the claim.
	Lost() <-chan struct{}
	// Confirm returns an error if another instance has the claim, or ctx ends. After a
	// pause of this process it waits for the answer, but not for long: nil can mean that
	// there is none.
	Confirm(ctx context.Context) error
	// Mark stores the stage of the shard on the way from one set to the next.
	Mark(ctx context.Context, stage event.Stage) error
	// Release gives the claim up once everything that was appended is committed.
	Release(ctx context.Context) error
	// End is Release for a shard whose session no instance will resume.
	End(ctx context.Context) error
}
