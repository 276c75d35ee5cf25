package postgres_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatehook/gatehook/internal/postgres"
)

func TestSharedAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var put atomic.Int64
		s := postgres.NewShared(func(context.Context) (int64, error) {
			n := put.Add(1)
			time.Sleep(time.Second) // the database's time
			return n, nil
		})
		// The first one asks alone. All who come while it waits share the next answer:
		// the question that is under way may have been answered before they came.
		var group sync.WaitGroup
		answers := make(chan int64, 100)
		for range cap(answers) {
			group.Go(func() {
				answer, asked, err := s.Answer(t.Context(), time.Now())
				if err != nil || asked.After(time.Now()) {
					t.Error(asked, err)
				}
				answers <- answer
			})
		}
		group.Wait()
		if n := put.Load(); n > 2 {
			t.Errorf("%d callers at once put the question %d times", cap(answers), n)
		}
		time.Sleep(time.Second)
		if answer, _, err := s.Answer(t.Context(), time.Now().Add(-time.Minute)); err != nil || answer != put.Load() {
			t.Errorf("an answer that is young enough: %d, %v after %d questions", answer, err, put.Load())
		}
		before := put.Load()
		if answer, _, err := s.Answer(t.Context(), time.Now()); err != nil || answer != before+1 {
			t.Errorf("an answer that is too old: %d, %v", answer, err)
		}
	})
}

// One whose question hangs, or fails, costs the others neither their answer nor their end.
func TestSharedAnswerFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		away := errors.New("away")
		hang := true
		s := postgres.NewShared(func(ctx context.Context) (string, error) {
			if hang {
				<-ctx.Done()
				return "", context.Cause(ctx)
			}
			return "here", nil
		})
		first, giveUp := context.WithCancelCause(t.Context())
		failed := make(chan error, 2)
		go func() {
			_, _, err := s.Answer(first, time.Now())
			failed <- err
		}()
		synctest.Wait()
		second, cancel := context.WithCancelCause(t.Context())
		go func() {
			_, _, err := s.Answer(second, time.Now())
			failed <- err
		}()
		synctest.Wait()
		cancel(away)
		if err := <-failed; !errors.Is(err, away) {
			t.Errorf("one that waits for its turn ended with %v", err)
		}
		hang = false
		giveUp(away)
		if err := <-failed; !errors.Is(err, away) {
			t.Errorf("one whose question hangs ended with %v", err)
		}
		if answer, _, err := s.Answer(t.Context(), time.Now()); answer != "here" || err != nil {
			t.Errorf("the next one: %q, %v", answer, err)
		}
	})
}
