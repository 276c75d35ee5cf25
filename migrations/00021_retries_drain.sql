-- +goose Up

-- What waits is asked for by listener, so the key begins with it: one index
-- less to write to.
ALTER TABLE retries DROP CONSTRAINT retries_pkey, ADD PRIMARY KEY (listener_id, batch_id, ordinal);
DROP INDEX retries_listener;

-- What is ordered is claimed by way of retries_order: a million such rows must
-- not stand before the others.
DROP INDEX retries_due, retries_background;
CREATE INDEX retries_due ON retries (listener_id, due_at) WHERE state = 'pending' AND NOT background AND order_key = '';
CREATE INDEX retries_background ON retries (listener_id, due_at) WHERE state = 'pending' AND background AND order_key = '';
CREATE INDEX retries_ordered ON retries (listener_id, due_at) WHERE state = 'pending' AND order_key <> '';

-- Rows that were stored together are claimed together. No index has what a claim
-- changes; with room for all of them beside the old ones it writes to none. What
-- is done leaves entries at the beginnings of the indexes, where claims look.
ALTER TABLE retries SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- +goose Down
ALTER TABLE retries SET (fillfactor = 80), RESET (autovacuum_vacuum_scale_factor);
DROP INDEX retries_ordered, retries_background, retries_due;
CREATE INDEX retries_due ON retries (listener_id, due_at) WHERE state = 'pending' AND NOT background;
CREATE INDEX retries_background ON retries (listener_id, due_at) WHERE state = 'pending' AND background;
CREATE INDEX retries_listener ON retries (listener_id, batch_id, ordinal);
ALTER TABLE retries DROP CONSTRAINT retries_pkey, ADD PRIMARY KEY (batch_id, ordinal, listener_id);
