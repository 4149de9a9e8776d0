package runtimeservice

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestTurns(t *testing.T) {
	t.Run("later steps first, then who waits longest", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			turns := &turns{time: turnTime, free: 1}
			first := takeTurn(t, turns, podStep)
			var order []string
			for _, w := range []struct {
				name string
				step step
			}{{"pod 1", podStep}, {"create 1", createStep}, {"pod 2", podStep}, {"start", startStep}, {"create 2", createStep}} {
				go func() {
					done := takeTurn(t, turns, w.step)
					order = append(order, w.name) // one at a time: there is one turn
					done()
				}()
				synctest.Wait()
			}
			if len(order) > 0 {
				t.Fatalf("%v did not wait", order)
			}
			first()
			synctest.Wait()
			if want := []string{"start", "create 1", "create 2", "pod 1", "pod 2"}; !slices.Equal(order, want) {
				t.Errorf("order %v, want %v", order, want)
			}
			if turns.free != 1 {
				t.Errorf("%d turns in the end, want 1", turns.free)
			}
		})
	})
	t.Run("a long one keeps nobody from theirs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			turns := &turns{time: turnTime, free: 1}
			long := takeTurn(t, turns, createStep)
			began := time.Now()
			takeTurn(t, turns, podStep)()
			if waited := time.Since(began); waited != turnTime {
				t.Errorf("waited for %s, want %s", waited, turnTime)
			}
			long()
			if turns.free != 1 {
				t.Errorf("%d turns in the end, want 1", turns.free)
			}
		})
	})
	t.Run("who gives up leaves no gap", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			turns := &turns{time: turnTime, free: 1}
			first := takeTurn(t, turns, podStep)
			ctx, cancel := context.WithTimeout(t.Context(), turnTime/2)
			defer cancel()
			if _, err := turns.take(ctx, startStep); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("take: %v, want the end of its context", err)
			}
			first()
			// A turn that comes together with the end of the context is given on.
			ended, end := context.WithCancel(t.Context())
			last := takeTurn(t, turns, podStep)
			go func() { _, _ = turns.take(ended, createStep) }()
			synctest.Wait()
			last()
			end()
			synctest.Wait()
			time.Sleep(turnTime) // the end of a turn that came first
			synctest.Wait()
			if turns.free != 1 {
				t.Errorf("%d turns in the end, want 1", turns.free)
			}
		})
	})
}

func takeTurn(t *testing.T, turns *turns, s step) (done func()) {
	t.Helper()
	done, err := turns.take(t.Context(), s)
	if err != nil {
		t.Fatalf("take: %v", err)
	}
	return done
}
