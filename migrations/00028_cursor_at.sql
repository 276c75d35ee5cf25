-- +goose Up

-- When the cursor was stored last. Events after it are in later batches, so a claim finds
-- the newest one without looking into older partitions.
ALTER TABLE shards ADD COLUMN cursor_at timestamptz;

-- +goose Down
ALTER TABLE shards DROP COLUMN cursor_at;
