-- +goose Up

-- One index for all that is asked of attempts: a listener's deliveries in
-- order, one delivery's attempts, what of a batch was delivered.
CREATE INDEX attempts_listener ON attempts (listener_id, batch_id, ordinal, started_at);
DROP INDEX attempts_batch_id_ordinal_idx;

CREATE INDEX retries_listener ON retries (listener_id, batch_id, ordinal);

-- Public ids of one session are neighbors: the index stays dense.
CREATE INDEX events_id ON events (id);

-- A person asked for it: it is delivered however old it is.
ALTER TABLE retries ADD COLUMN asked boolean NOT NULL DEFAULT false;

-- +goose Down
ALTER TABLE retries DROP COLUMN asked;
DROP INDEX events_id, retries_listener, attempts_listener;
CREATE INDEX attempts_batch_id_ordinal_idx ON attempts (batch_id, ordinal);
