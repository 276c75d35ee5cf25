-- +goose Up

-- Which instance settles what a dead one left. While it is NULL the instance
-- can renew its lease; the row goes when all is settled.
ALTER TABLE instances ADD COLUMN heir bigint;

-- Rows used to go before: what still names such an instance needs an heir too.
INSERT INTO instances (id, name, hostname, lease_until) OVERRIDING SYSTEM VALUE
    SELECT owner, gen_random_uuid(), '', 'epoch' FROM (
        SELECT owner FROM batches UNION SELECT owner FROM retries UNION SELECT owner FROM shards
    ) AS gone WHERE owner IS NOT NULL AND NOT EXISTS (SELECT FROM instances i WHERE i.id = owner);

-- +goose Down
ALTER TABLE instances DROP COLUMN heir;
