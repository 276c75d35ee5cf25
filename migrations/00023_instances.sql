-- +goose Up

-- The name of the process's connections in pg_stat_activity. The heir of a process
-- that is frozen in the middle of a commit ends them: they hold locks. '' for unknown.
ALTER TABLE instances ADD COLUMN application_name text NOT NULL DEFAULT '';

-- What the low 10 bits of the numbers of its batches are: two instances never give a
-- batch the same number. Builds that know no slots use the low bits of the id.
ALTER TABLE instances ADD COLUMN slot int UNIQUE CHECK (slot BETWEEN 0 AND 1023);
UPDATE instances i SET slot = id & 1023
    WHERE NOT EXISTS (SELECT FROM instances o WHERE o.id > i.id AND o.id & 1023 = i.id & 1023);

-- Where the name is kept: the machine since its last boot ('' if that is unknown), and
-- the data directory. Only there does the directory's lock show that an earlier process
-- of this name is dead.
ALTER TABLE instances
    ADD COLUMN boot_id   text NOT NULL DEFAULT '',
    ADD COLUMN directory text NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE instances DROP COLUMN directory, DROP COLUMN boot_id, DROP COLUMN slot, DROP COLUMN application_name;
