-- +goose Up

-- Why a guild came or went: what tells a join from the start of a session is
-- known only when the event is received.
ALTER TABLE events ADD COLUMN origin text NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE events DROP COLUMN origin;
