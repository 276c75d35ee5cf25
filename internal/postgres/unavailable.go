package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"
)

// diskFull is the code of a statement for which there was no space.
const diskFull = "53100"

// lockNotAvailable is the code of a statement that waited too long for a lock.
const lockNotAvailable = "55P03"

// remedies are what a person can do about errors that no repetition cures.
var remedies = map[string]string{
	diskFull:            "the database's disk is full: free some space on it",
	"53300":             "the database has no connection left: raise its max_connections, or lower pool_max_conns in the servers' database URL",
	"42501":             "the server's role lacks a privilege: grant it as the README says",
	readOnlyTransaction: "the database takes no changes: it is a standby, or its disk or its settings make it read-only",
}

// Remedy returns what a person can do about an error of the database, in one line without
// anything secret; empty if nothing is known.
func Remedy(err error) string {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return ""
	}
	return remedies[pgErr.Code]
}

// Explain returns the error with its remedy, if there is one.
func Explain(err error) error {
	if r := Remedy(err); r != "" {
		return fmt.Errorf("%w: %s", err, r)
	}
	return err
}

// Unavailable reports whether an error comes from the state of the database and not
// from the statement, so that the same statement may succeed later.
func Unavailable(err error) bool {
	var (
		connect *pgconn.ConnectError
		pgErr   *pgconn.PgError
		netErr  net.Error
	)
	switch {
	case errors.As(err, &connect): // whatever the server answered
		return true
	case errors.As(err, &pgErr):
		// Connection, read-only, deadlock, resources, operator and system
		// (PostgreSQL, Error Codes: classes), and a lock that is not free.
		return pgErr.Code == lockNotAvailable || len(pgErr.Code) == 5 && slices.Contains([]string{"08", "25", "40", "53", "57", "58"}, pgErr.Code[:2])
	default:
		// A server that dies in the middle of an answer causes a bare io error.
		return errors.As(err, &netErr) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
			pgconn.Timeout(err) || pgconn.SafeToRetry(err) || errors.Is(err, context.DeadlineExceeded)
	}
}
