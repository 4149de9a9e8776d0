package runtimeservice

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestSlots(t *testing.T) {
	t.Run("the later step first, then the one that has waited longest", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			slots := &prioritySemaphore{time: slotTime, free: 1}
			first := takeSlot(t, slots, podStep)
			var order []string
			for _, w := range []struct {
				name string
				step step
			}{{"pod 1", podStep}, {"create 1", createStep}, {"pod 2", podStep}, {"start", startStep}, {"create 2", createStep}} {
				go func() {
					done := takeSlot(t, slots, w.step)
					order = append(order, w.name) // one at a time: there is one slot
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
			if slots.free != 1 {
				t.Errorf("%d free slots in the end, want 1", slots.free)
			}
		})
	})
	t.Run("a long step does not block the others", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			slots := &prioritySemaphore{time: slotTime, free: 1}
			long := takeSlot(t, slots, createStep)
			began := time.Now()
			takeSlot(t, slots, podStep)()
			if waited := time.Since(began); waited != slotTime {
				t.Errorf("waited for %s, want %s", waited, slotTime)
			}
			long()
			if slots.free != 1 {
				t.Errorf("%d free slots in the end, want 1", slots.free)
			}
		})
	})
	t.Run("who gives up leaves no gap", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			slots := &prioritySemaphore{time: slotTime, free: 1}
			first := takeSlot(t, slots, podStep)
			ctx, cancel := context.WithTimeout(t.Context(), slotTime/2)
			defer cancel()
			if _, err := slots.acquire(ctx, startStep); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("take: %v, want the end of its context", err)
			}
			first()
			// A slot that arrives together with the end of the context goes to the next step.
			ended, end := context.WithCancel(t.Context())
			last := takeSlot(t, slots, podStep)
			go func() { _, _ = slots.acquire(ended, createStep) }()
			synctest.Wait()
			last()
			end()
			synctest.Wait()
			time.Sleep(slotTime) // the slot of the step that ran first is free
			synctest.Wait()
			if slots.free != 1 {
				t.Errorf("%d free slots in the end, want 1", slots.free)
			}
		})
	})
}

func takeSlot(t *testing.T, slots *prioritySemaphore, s step) (done func()) {
	t.Helper()
	done, err := slots.acquire(t.Context(), s)
	if err != nil {
		t.Fatalf("take: %v", err)
	}
	return done
}
