-- +goose Up

-- Over how many shards each application is spread, and how far a change of
-- that number is. A change of the row names the version that it follows.
CREATE TABLE shard_plans (
    application_id bigint PRIMARY KEY,
    version        bigint NOT NULL DEFAULT 1,
    current_count  int NOT NULL,
    next_count     int NOT NULL DEFAULT 0,
    previous_count int NOT NULL DEFAULT 0,
    phase          text NOT NULL DEFAULT 'steady',
    since          timestamptz NOT NULL DEFAULT now(),
    overlap_at     timestamptz
);
INSERT INTO shard_plans (application_id, current_count)
    SELECT application_id, (array_agg(shard_count ORDER BY updated_at DESC))[1] FROM shards GROUP BY application_id;

-- How far a shard is on the way from one set to the next.
ALTER TABLE shards ADD COLUMN stage text NOT NULL DEFAULT '';

-- What of an application's shards a server is willing to run: a range of one
-- set (shard_count 0: all, of whatever set). One that drains is not sharing
-- any more, long before its lease ends.
ALTER TABLE instances
    ADD COLUMN application_id bigint NOT NULL DEFAULT 0,
    ADD COLUMN shard_first    int NOT NULL DEFAULT 0,
    ADD COLUMN shard_last     int NOT NULL DEFAULT 0,
    ADD COLUMN shard_count    int NOT NULL DEFAULT 0,
    ADD COLUMN sharing        boolean NOT NULL DEFAULT false;

-- What is left of the session starts that Discord allows a day, shared by all
-- servers: each start takes one before it is made.
CREATE TABLE session_starts (
    application_id bigint PRIMARY KEY,
    total          int NOT NULL,
    remaining      int NOT NULL,
    reset_at       timestamptz NOT NULL,
    spent_at       timestamptz NOT NULL DEFAULT '-infinity'
);

-- +goose Down
DROP TABLE session_starts, shard_plans;
ALTER TABLE shards DROP COLUMN stage;
ALTER TABLE instances DROP COLUMN application_id, DROP COLUMN shard_first, DROP COLUMN shard_last,
    DROP COLUMN shard_count, DROP COLUMN sharing;
