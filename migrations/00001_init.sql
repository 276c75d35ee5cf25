-- +goose Up

-- One row a running server. Its lease covers everything that names it as
-- owner: shards, batches, claimed retries. One heartbeat a server, not one a
-- shard.
CREATE TABLE instances (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The identity that a data directory keeps across restarts. A server that
    -- starts with the name of an earlier one holds that directory's lock, so
    -- the earlier one is dead, whatever its lease says.
    name        uuid NOT NULL UNIQUE,
    hostname    text NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT now(),
    lease_until timestamptz NOT NULL
);

-- The cursor of every shard, and who may move it.
CREATE TABLE shards (
    application_id bigint NOT NULL,
    shard_count    int NOT NULL,
    shard_id       int NOT NULL,
    owner          bigint,
    -- Raised by every claim. A commit names the epoch it claimed with, so that
    -- an owner that lost its lease while it was paused stores nothing.
    epoch          bigint NOT NULL DEFAULT 0,
    session_id     text NOT NULL DEFAULT '',
    resume_url     text NOT NULL DEFAULT '',
    seq            bigint NOT NULL DEFAULT 0,
    intents        bigint NOT NULL DEFAULT 0,
    updated_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (application_id, shard_count, shard_id)
) WITH (fillfactor = 50); -- updated by every commit: leave room for HOT updates

-- When the next IDENTIFY of a rate limit bucket may be sent.
CREATE TABLE identify_buckets (
    application_id bigint NOT NULL,
    bucket         int NOT NULL,
    next_at        timestamptz NOT NULL,
    PRIMARY KEY (application_id, bucket)
) WITH (fillfactor = 50);

CREATE TABLE listeners (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event           text NOT NULL,
    url             text NOT NULL,
    description     text NOT NULL DEFAULT '',
    enabled         boolean NOT NULL DEFAULT true,
    format          text NOT NULL DEFAULT 'standard',
    headers         jsonb NOT NULL DEFAULT '{}',
    filter          jsonb NOT NULL DEFAULT '{}',
    ordering        text NOT NULL DEFAULT 'none',
    max_in_flight   int NOT NULL DEFAULT 16,
    -- Milliseconds; NULL for no limit.
    max_age_ms      bigint,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    disabled_at     timestamptz,
    disabled_reason text,
    UNIQUE (event, url)
);

CREATE TABLE listener_secrets (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    listener_id bigint NOT NULL REFERENCES listeners (id) ON DELETE CASCADE,
    secret      text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    -- NULL for the current one; a rotated one signs until then.
    expires_at  timestamptz
);
CREATE INDEX ON listener_secrets (listener_id);

-- Raised by every change of a listener: an instance whose table of them has
-- another version reads them again.
CREATE TABLE listeners_version (
    single  boolean PRIMARY KEY DEFAULT true CHECK (single),
    version bigint NOT NULL
);
INSERT INTO listeners_version (version) VALUES (1);

-- Every wanted event once, with whom it is for. batch_id grows with time (it
-- is the commit's clock in microseconds, shifted left by 10 bits), so the key
-- is sequential and a range of it is a range of time: retention drops
-- partitions.
CREATE TABLE events (
    batch_id    bigint NOT NULL,
    ordinal     int NOT NULL,
    id          uuid NOT NULL,
    name        text NOT NULL,
    shard_id    int NOT NULL,
    shard_count int NOT NULL,
    seq         bigint NOT NULL,
    received_at timestamptz NOT NULL,
    guild_id    bigint NOT NULL,
    channel_id  bigint NOT NULL,
    user_id     bigint NOT NULL,
    listeners   bigint[] NOT NULL,
    -- bytea, never jsonb: the bytes are what Discord sent.
    data        bytea NOT NULL,
    PRIMARY KEY (batch_id, ordinal)
) PARTITION BY RANGE (batch_id);

-- A row for every batch whose deliveries are not all settled. Whoever takes
-- over a dead owner's batches dispatches them again.
CREATE TABLE batches (
    id    bigint PRIMARY KEY,
    owner bigint NOT NULL
);

-- What happened at every attempt: appended, never updated.
CREATE TABLE attempts (
    batch_id    bigint NOT NULL,
    ordinal     int NOT NULL,
    listener_id bigint NOT NULL,
    attempt     int NOT NULL,
    started_at  timestamptz NOT NULL,
    duration_us int NOT NULL,
    -- 0 when there was no response.
    status      int NOT NULL,
    delivered   boolean NOT NULL,
    error       text NOT NULL,
    response    bytea NOT NULL
) PARTITION BY RANGE (started_at);
CREATE INDEX ON attempts (batch_id, ordinal);

-- Deliveries that did not succeed at first, or that a full lane could not
-- hold. A delivery that succeeds loses its row.
CREATE TABLE retries (
    batch_id    bigint NOT NULL,
    ordinal     int NOT NULL,
    listener_id bigint NOT NULL,
    -- pending, exhausted, expired, unparsable
    state       text NOT NULL DEFAULT 'pending',
    -- How many attempts were made.
    attempt     int NOT NULL,
    due_at      timestamptz NOT NULL,
    -- The key that orders it, '' for none: an older pending row of the same
    -- listener and key goes first.
    order_key   text NOT NULL DEFAULT '',
    -- The instance that has it in hand; NULL for none.
    owner       bigint,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (batch_id, ordinal, listener_id)
) WITH (fillfactor = 80);
CREATE INDEX retries_due ON retries (listener_id, due_at) WHERE state = 'pending';
CREATE INDEX retries_order ON retries (listener_id, order_key, batch_id, ordinal)
    WHERE state = 'pending' AND order_key <> '';

-- +goose Down
DROP TABLE retries, attempts, batches, events, listener_secrets, listeners, listeners_version, identify_buckets, shards, instances;
