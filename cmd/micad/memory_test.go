package main

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/micarun/mica/internal/operations"
)

// Memory is given back once after each burst, and not while an operation runs.
func TestMemoryIsReleasedAfterBursts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		tracker := operations.New(m)
		begin := time.Now()
		var released []time.Duration
		ctx, end := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.afterBursts(ctx, func() { released = append(released, time.Since(begin)) })
		}()
		operation := func(took time.Duration) {
			_, op := tracker.Begin(t.Context(), "test", operations.Subject{})
			time.Sleep(took)
			op.End(nil)
		}
		for range 5 { // one burst, until 10 s
			operation(time.Second)
			time.Sleep(time.Second)
		}
		time.Sleep(time.Hour)
		operation(time.Minute)
		time.Sleep(time.Hour)
		end()
		<-done
		first := 9*time.Second + quietTime
		second := 10*time.Second + time.Hour + time.Minute + quietTime
		if want := []time.Duration{first, second}; !slices.Equal(released, want) {
			t.Errorf("released after %v, want %v", released, want)
		}
	})
}
