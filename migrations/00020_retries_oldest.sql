-- +goose Up

-- The oldest event that waits for a listener, for the metrics, in one step.
CREATE INDEX retries_oldest ON retries (listener_id, batch_id) WHERE state = 'pending';

-- +goose Down
DROP INDEX retries_oldest;
