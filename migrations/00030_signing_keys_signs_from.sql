-- +goose Up

-- When a key begins to sign: receivers have to know it first. NULL for the keys of older
-- versions, which signed at once.
ALTER TABLE signing_keys ADD COLUMN signs_from timestamptz;

-- +goose Down
ALTER TABLE signing_keys DROP COLUMN signs_from;
