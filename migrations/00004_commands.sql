-- +goose Up

-- What a bot shows as its presence. Every IDENTIFY carries it, and every
-- instance whose connections show another version tells Discord.
CREATE TABLE presences (
    application_id bigint PRIMARY KEY,
    -- The d of Discord's Update Presence.
    presence       bytea NOT NULL,
    version        bigint NOT NULL DEFAULT 1,
    -- When the latest changes were, the oldest first: as many as Discord takes
    -- in 20 s, so that the first of them tells when there may be another.
    changes        timestamptz[] NOT NULL
);

-- Commands for shards that another instance has. Whoever has the shard takes
-- the row, does it and answers it; the caller waits for that for some seconds.
CREATE TABLE shard_commands (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    application_id bigint NOT NULL,
    shard_count    int NOT NULL,
    shard_id       int NOT NULL,
    -- Discord's op code. Reconnect (7), which Discord only sends, asks for a
    -- restart of the shard.
    op             int NOT NULL,
    payload        bytea NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    -- Set before it is done: a command is never done twice.
    taken_at       timestamptz,
    answered_at    timestamptz,
    outcome        text NOT NULL DEFAULT '',
    detail         text NOT NULL DEFAULT '',
    retry_after_ms bigint NOT NULL DEFAULT 0
);
CREATE INDEX shard_commands_waiting ON shard_commands (application_id, shard_count, shard_id) WHERE taken_at IS NULL;

-- +goose Down
DROP TABLE shard_commands, presences;
