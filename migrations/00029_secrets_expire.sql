-- +goose NO TRANSACTION
-- +goose Up

-- The replaced secrets: every few seconds, each server looks whether one has expired.
DROP INDEX CONCURRENTLY IF EXISTS listener_secrets_expire;
CREATE INDEX CONCURRENTLY listener_secrets_expire ON listener_secrets (expires_at) WHERE expires_at IS NOT NULL;

-- +goose Down
DROP INDEX listener_secrets_expire;
