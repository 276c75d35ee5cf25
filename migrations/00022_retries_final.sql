-- +goose Up

-- The lists of deliveries by status. Nothing that waits is in it, so neither a
-- million that do stand before the few that are exhausted, nor does what is
-- delivered in the end pay for it.
CREATE INDEX retries_final ON retries (listener_id, state, batch_id, ordinal) WHERE state <> 'pending';

-- +goose Down
DROP INDEX retries_final;
