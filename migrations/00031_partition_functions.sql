-- +goose Up

-- A server makes and drops partitions, which takes the tables' owner. It may serve as a role
-- that owns nothing: these functions, which only the owner may run unless they are granted,
-- do that for it, and nothing else.

-- +goose StatementBegin
CREATE FUNCTION make_partition(parent text, name text, lower text, upper text) RETURNS void
	LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
	PERFORM check_partition(parent, name);
	EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name, parent);
	-- ATTACH does not block writers of the other partitions.
	EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, name, lower, upper);
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION drop_partition(parent text, name text) RETURNS void
	LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
	PERFORM check_partition(parent, name);
	EXECUTE format('DROP TABLE IF EXISTS %I', name);
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION check_partition(parent text, name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF parent NOT IN ('events', 'attempts') OR name !~ ('^' || parent || '_[0-9]{8}t[0-9]{2}$') THEN
		RAISE EXCEPTION '% is no partition of events or attempts', name;
	END IF;
END $$;
-- +goose StatementEnd

REVOKE EXECUTE ON FUNCTION make_partition(text, text, text, text), drop_partition(text, text) FROM PUBLIC;

-- +goose Down
DROP FUNCTION make_partition(text, text, text, text), drop_partition(text, text), check_partition(text, text);
