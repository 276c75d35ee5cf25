-- +goose Up

-- The name of the process's connections in pg_stat_activity. The heir of a process
-- that is frozen in the middle of a commit ends them: they hold locks. '' for unknown.
ALTER TABLE instances ADD COLUMN application_name text NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE instances DROP COLUMN application_name;
