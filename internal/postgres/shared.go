package postgres

import (
	"context"
	"time"
)

// Shared puts a question to the database on behalf of all who want its answer, one at a
// time: however many ask, they use one connection. Make it with NewShared; it is safe for
// concurrent use.
type Shared[T any] struct {
	question func(context.Context) (T, error)

	turn   chan struct{} // holds a token while somebody asks; guards the fields below
	answer T
	asked  time.Time // when the question was put that answer answers
}

// NewShared returns a Shared for a question. The answer must not be changed afterwards.
func NewShared[T any](question func(context.Context) (T, error)) *Shared[T] {
	return &Shared[T]{question: question, turn: make(chan struct{}, 1)}
}

// Answer returns the answer to the question if it was put after since, and when that was.
// Otherwise it puts the question now. The error is the question's, which is not
// shared, or the context's cause.
func (s *Shared[T]) Answer(ctx context.Context, since time.Time) (answer T, asked time.Time, err error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return answer, asked, context.Cause(ctx)
	}
	if !s.asked.After(since) {
		asked = time.Now()
		if answer, err = s.question(ctx); err != nil {
			return answer, asked, err
		}
		s.answer, s.asked = answer, asked
	}
	return s.answer, s.asked, nil
}
