-- +goose Up

-- Which builds can use the schema: those that know at least the schema version
-- oldest_build. A migration that older builds can't live with raises it.
CREATE TABLE schema_compatibility (
    one          boolean PRIMARY KEY DEFAULT true CHECK (one),
    oldest_build bigint NOT NULL
);
INSERT INTO schema_compatibility (oldest_build) VALUES (26);

-- +goose Down
DROP TABLE schema_compatibility;
