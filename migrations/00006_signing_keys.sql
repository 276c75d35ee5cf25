-- +goose Up

-- The Ed25519 keys that sign deliveries in the format discord. The newest one
-- signs; the others are listed, so that what an older one signed can still be
-- verified.
CREATE TABLE signing_keys (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    public_key bytea NOT NULL,
    -- RFC 8032's private key, 32 bytes.
    seed       bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- +goose Down
DROP TABLE signing_keys;
