package imageservice

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"
)

// rig counts runs and dropped results of calls.
type rig struct {
	calls[int, string]
	runs, dropped int
}

func newRig() *rig {
	r := new(rig)
	r.drop = func(int) { r.dropped++ }
	return r
}

func (r *rig) join(t *testing.T, keep bool, run func(context.Context) (int, error)) (*call[int, string], bool) {
	t.Helper()
	f, started, err := r.calls.join(t.Context(), callArgs[int, string]{key: "k", keep: keep, run: func(ctx context.Context, _ string) (int, error) {
		r.runs++
		return run(ctx)
	}})
	if err != nil {
		t.Fatal(err)
	}
	return f, started
}

func untilCancelled(ctx context.Context) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

// All who join while a result is held share it. It is dropped once, after the last holder.
func TestCallIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		one := func(context.Context) (int, error) { return 1, nil }
		a, started := r.join(t, false, one)
		if !started {
			t.Error("the first did not start it")
		}
		synctest.Wait()
		b, started := r.join(t, false, one)
		if started || r.runs != 1 {
			t.Errorf("started %v, %d runs", started, r.runs)
		}
		for _, f := range []*call[int, string]{a, b} {
			if v, err := f.wait(t.Context()); v != 1 || err != nil {
				t.Error(v, err)
			}
			if r.dropped != 0 {
				t.Error("dropped while held")
			}
			f.release()
		}
		if r.dropped != 1 {
			t.Errorf("dropped %d times", r.dropped)
		}
		c, started := r.join(t, false, one)
		if !started {
			t.Error("joined a call that is over")
		}
		r.close()
		c.release()
		if r.dropped != 2 {
			t.Errorf("dropped %d times", r.dropped)
		}
	})
}

// A call is cancelled when its last holder releases it, not when the first does.
func TestCallOutlivesItsFirstCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		a, _ := r.join(t, false, untilCancelled)
		b, _ := r.join(t, false, untilCancelled)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := a.wait(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		a.release()
		synctest.Wait()
		select {
		case <-b.done:
			t.Fatal("ended with its first caller")
		default:
		}
		b.release()
		<-b.done
		r.close()
	})
}

func TestKeptCallGoesOnAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		proceed := make(chan struct{})
		run := func(ctx context.Context) (int, error) {
			<-proceed
			return 2, ctx.Err()
		}
		a, _ := r.join(t, true, run)
		a.release()
		synctest.Wait()
		b, started := r.join(t, true, run)
		if started {
			t.Error("the retry did not join")
		}
		close(proceed)
		if v, err := b.wait(t.Context()); v != 2 || err != nil {
			t.Error(v, err)
		}
		synctest.Wait()
		b.release()
		if r.dropped != 1 {
			t.Errorf("dropped %d times", r.dropped)
		}
		r.close()
	})
}

// A kept call that has finished is not joined, even while its result is held: the answer may have
// changed.
func TestFinishedKeptCallIsNotJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		a, _ := r.join(t, true, func(context.Context) (int, error) { return 1, nil })
		synctest.Wait()
		b, started := r.join(t, true, func(context.Context) (int, error) { return 2, nil })
		if v, err := b.wait(t.Context()); !started || v != 2 || err != nil {
			t.Errorf("second call: started %v, %d, %v; want one of its own", started, v, err)
		}
		a.release()
		b.release()
	})
}

// Only callers that wait get a failure. Later callers begin another call.
func TestFailedCallIsNotJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		a, _ := r.join(t, false, func(context.Context) (int, error) { return 0, errors.New("no") })
		if _, err := a.wait(t.Context()); err == nil {
			t.Error("no error")
		}
		b, started := r.join(t, false, untilCancelled)
		if !started {
			t.Error("joined a failure")
		}
		a.release()
		r.close()
		b.release()
		if r.dropped != 0 {
			t.Error("a failure was dropped as if it were a value")
		}
		if _, _, err := r.calls.join(t.Context(), callArgs[int, string]{key: "k"}); !errdefs.IsUnavailable(err) {
			t.Errorf("join after close: %v", err)
		}
	})
}

// A result without a holder is dropped.
func TestOrphanedValueIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		a, _ := r.join(t, false, func(ctx context.Context) (int, error) {
			<-ctx.Done()
			return 3, nil
		})
		a.release()
		r.close()
		if r.dropped != 1 {
			t.Errorf("dropped %d times", r.dropped)
		}
	})
}
