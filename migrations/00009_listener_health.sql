-- +goose Up

-- Since when every attempt for a listener failed: the time of the first failure
-- after the last success, NULL for none. A listener without a row never failed.
CREATE TABLE listener_health (
    listener_id   bigint PRIMARY KEY,
    failing_since timestamptz
) WITH (fillfactor = 50); -- a callback that comes and goes changes it often: leave room for HOT updates

-- +goose Down
DROP TABLE listener_health;
