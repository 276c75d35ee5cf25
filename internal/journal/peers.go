package journal

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/gatehook/gatehook/internal/postgres"
)

// Peers tells the live instances which listeners each of them knows. It is safe for
// concurrent use.
type Peers struct {
	pool     postgres.DB
	instance *Instance
}

// NewPeers returns the peers of an instance. The caller closes pool.
func NewPeers(pool *pgxpool.Pool, instance *Instance) *Peers {
	return &Peers{postgres.On(pool), instance}
}

// Self returns the number of this instance.
func (p *Peers) Self() int64 { return p.instance.ID() }

// Applied tells the others by which version of the listeners the instance of this number,
// which is this one, matches events.
func (p *Peers) Applied(ctx context.Context, self, version int64) error {
	_, err := p.pool.Exec(ctx, `UPDATE instances SET listeners_version = $2 WHERE id = $1 AND listeners_version < $2`, self, version)
	if err != nil {
		return fmt.Errorf("tell the version of the listeners: %w", err)
	}
	return nil
}

// Versions returns, for each other live instance, the version that it applied last; 0 if
// it has told none yet.
func (p *Peers) Versions(ctx context.Context) (map[int64]int64, error) {
	rows, err := p.pool.Query(ctx, `SELECT id, listeners_version FROM instances WHERE id <> $1 AND heir IS NULL AND lease_until > now()`, p.Self())
	if err != nil {
		return nil, fmt.Errorf("read the versions of the listeners: %w", err)
	}
	versions := make(map[int64]int64)
	var id, version int64
	if _, err := pgx.ForEachRow(rows, []any{&id, &version}, func() error {
		versions[id] = version
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read the versions of the listeners: %w", err)
	}
	return versions, nil
}
