-- +goose Up

-- An IDENTIFY is about to be sent, or was, and its session is not stored yet. If
-- the owner ends in between, the next one says that a session was lost.
ALTER TABLE shards ADD COLUMN session_begins boolean NOT NULL DEFAULT false;

-- +goose Down
ALTER TABLE shards DROP COLUMN session_begins;
