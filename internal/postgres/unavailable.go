package postgres

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"
)

// lockNotAvailable is the code of a statement that waited too long for a lock.
const lockNotAvailable = "55P03"

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
