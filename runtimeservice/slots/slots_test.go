package slots

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
			slots := &Semaphore{time: slotTime, free: 1}
			first := takeSlot(t, slots, Pod)
			var order []string
			for _, w := range []struct {
				name string
				step Step
			}{{"pod 1", Pod}, {"create 1", Create}, {"pod 2", Pod}, {"start", Start}, {"create 2", Create}} {
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
			slots := &Semaphore{time: slotTime, free: 1}
			long := takeSlot(t, slots, Create)
			began := time.Now()
			takeSlot(t, slots, Pod)()
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
			slots := &Semaphore{time: slotTime, free: 1}
			first := takeSlot(t, slots, Pod)
			ctx, cancel := context.WithTimeout(t.Context(), slotTime/2)
			defer cancel()
			if _, err := slots.Acquire(ctx, Start); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("take: %v, want the end of its context", err)
			}
			first()
			// A slot that arrives together with the end of the context goes to the next step.
			ended, end := context.WithCancel(t.Context())
			last := takeSlot(t, slots, Pod)
			go func() { _, _ = slots.Acquire(ended, Create) }()
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

func takeSlot(t *testing.T, slots *Semaphore, s Step) (done func()) {
	t.Helper()
	done, err := slots.Acquire(t.Context(), s)
	if err != nil {
		t.Fatalf("take: %v", err)
	}
	return done
}
