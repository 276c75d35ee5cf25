-- +goose Up

-- When all shards of the next set held their events back. From then on, each event that
-- the current set delivers has a copy in the next one.
ALTER TABLE shard_plans ADD COLUMN held_at timestamptz;

-- +goose Down
ALTER TABLE shard_plans DROP COLUMN held_at;
