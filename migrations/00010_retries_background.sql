-- +goose Up

-- One of very many that somebody asked for at once: it goes when nothing else is
-- due, so each kind has its index.
ALTER TABLE retries ADD COLUMN background boolean NOT NULL DEFAULT false;
DROP INDEX retries_due;
CREATE INDEX retries_due ON retries (listener_id, due_at) WHERE state = 'pending' AND NOT background;
CREATE INDEX retries_background ON retries (listener_id, due_at) WHERE state = 'pending' AND background;

-- +goose Down
DROP INDEX retries_background, retries_due;
ALTER TABLE retries DROP COLUMN background;
CREATE INDEX retries_due ON retries (listener_id, due_at) WHERE state = 'pending';
