-- +goose Up

-- The name of the process's connections in pg_stat_activity. The heir of a process
-- that is frozen in the middle of a commit ends them: they hold locks. '' for unknown.
ALTER TABLE instances ADD COLUMN application_name text NOT NULL DEFAULT '';

-- What the low 10 bits of the numbers of its batches are: two instances never give a
-- batch the same number. Builds that know no slots use the low bits of the id.
ALTER TABLE instances ADD COLUMN slot int UNIQUE CHECK (slot BETWEEN 0 AND 1023);
UPDATE instances i SET slot = id & 1023
    WHERE NOT EXISTS (SELECT FROM instances o WHERE o.id > i.id AND o.id & 1023 = i.id & 1023);

-- +goose Down
ALTER TABLE instances DROP COLUMN slot, DROP COLUMN application_name;
