package main

import (
	"context"
	"errors"
	"net/http"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/gatehook/gatehook/internal/openapi"
	"github.com/gatehook/gatehook/internal/postgres"
)

// GetHealth implements GET /healthz.
func (s *server) GetHealth(context.Context, openapi.GetHealthRequestObject) (openapi.GetHealthResponseObject, error) {
	return openapi.GetHealth200JSONResponse{Status: openapi.Ok}, nil
}

// GetReadiness implements GET /readyz.
func (s *server) GetReadiness(context.Context, openapi.GetReadinessRequestObject) (openapi.GetReadinessResponseObject, error) {
	reasons := s.unready()
	if len(reasons) == 0 {
		return openapi.GetReadiness200JSONResponse{Status: openapi.Ok}, nil
	}
	e := openapi.Error{Status: http.StatusServiceUnavailable, Detail: reasons[0], Reasons: reasons}
	return openapi.GetReadiness503ApplicationProblemPlusJSONResponse(e.Problem()), nil
}

// unready returns the reasons why events can't be received and stored. Anybody may
// read them, so they don't contain the database's address and user, which its errors
// name.
func (s *server) unready() (reasons []string) {
	if s.draining.Load() {
		reasons = append(reasons, "the server is draining: it was told to stop")
	}
	// What the last heartbeat met: however many ask, they cost the database nothing.
	if err := s.instance.Err(); err != nil {
		reasons = append(reasons, "the database does not answer: "+cause(err))
	}
	if err := s.journal.Err(); err != nil {
		reasons = append(reasons, "events can't be stored at the moment: "+cause(err))
	}
	if err := s.delivery.Err(); err != nil {
		reasons = append(reasons, "attempts can't be recorded at the moment: "+cause(err))
	}
	return append(reasons, s.gateway.Unready()...)
}

// cause returns the part of a database error that anybody may read. The log has the
// whole error.
func cause(err error) string {
	refused := (*pgconn.PgError)(nil)
	remedy := postgres.Remedy(err)
	switch {
	case remedy != "":
		return remedy
	case errors.As(err, &refused):
		return "SQLSTATE " + refused.Code
	case postgres.Unavailable(err):
		return "no connection, or no answer in time"
	default:
		return "the log says why"
	}
}
