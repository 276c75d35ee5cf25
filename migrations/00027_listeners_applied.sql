-- +goose Up

-- The version of the listeners by which each server matches events: whoever changes a
-- listener waits until the others know it.
ALTER TABLE instances ADD COLUMN listeners_version bigint NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE instances DROP COLUMN listeners_version;
