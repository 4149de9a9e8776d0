package state

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

type thing struct{ id, name string }

func (t *thing) ID() string       { return t.id }
func (t *thing) Identity() string { return t.name }

func anyThing(*thing) error { return nil }

// creation returns a call that creates the thing of an identity and takes any other.
func creation(limit time.Duration, build func(context.Context) (*thing, error)) Creation[*thing] {
	return Creation[*thing]{Operation: "make thing", Identity: "name", Limit: limit, Fits: anyThing, Reuse: anyThing, Build: build}
}

func TestTableGet(t *testing.T) {
	tbl := NewTable[*thing]("thing", nil)
	for _, id := range []string{"abc1", "abc2", "abd", "ab"} {
		if err := tbl.Add(&thing{id, "name-" + id}); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		id, want string
		err      error
	}{
		{"abc1", "abc1", nil},
		{"abd", "abd", nil},
		{"ab", "ab", nil}, // a full ID wins over those that it begins
		{"abc", "", errdefs.ErrInvalidArgument},
		{"x", "", errdefs.ErrNotFound},
		{"", "", errdefs.ErrInvalidArgument},
	} {
		got, err := tbl.Get(tc.id)
		if !errors.Is(err, tc.err) || (err == nil && got.id != tc.want) {
			t.Errorf("get(%q) = %v, %v; want %q, %v", tc.id, got, err, tc.want, tc.err)
		}
	}
}

func TestTableNameIsReservedUntilRemoved(t *testing.T) {
	tbl := NewTable[*thing]("thing", nil)
	first := &thing{"a", "name"}
	if err := tbl.Add(first); err != nil {
		t.Fatal(err)
	}
	if err := tbl.Add(&thing{"b", "name"}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("second add = %v, want ErrAlreadyExists", err)
	}
	tbl.Remove(first)
	if err := tbl.Add(&thing{"b", "name"}); err != nil {
		t.Errorf("add after remove = %v", err)
	}
}

func TestTableJoinsCreations(t *testing.T) {
	tbl := NewTable[*thing]("thing", nil)
	var builds atomic.Int32
	build := func(context.Context) (*thing, error) {
		builds.Add(1)
		time.Sleep(20 * time.Millisecond)
		obj := &thing{"id", "name"}
		return obj, tbl.Add(obj)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			obj, err := tbl.Create(t.Context(), creation(time.Minute, build))
			if err != nil || obj.id != "id" {
				t.Errorf("create = %v, %v", obj, err)
			}
		})
	}
	wg.Wait()
	if n := builds.Load(); n != 1 {
		t.Errorf("built %d times, want once", n)
	}
}

func TestTableCreationOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tbl := NewTable[*thing]("thing", nil)
		build := func(ctx context.Context) (*thing, error) {
			select {
			case <-time.After(time.Minute):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			obj := &thing{"id", "name"}
			return obj, tbl.Add(obj)
		}
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := tbl.Create(impatient, creation(time.Hour, build)); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("first create = %v, want DeadlineExceeded", err)
		}
		never := func(context.Context) (*thing, error) { return nil, errors.New("built twice") }
		obj, err := tbl.Create(t.Context(), creation(time.Hour, never))
		if err != nil || obj.id != "id" {
			t.Fatalf("retry = %v, %v; want the object of the first call", obj, err)
		}
		obj, err = tbl.Create(t.Context(), creation(time.Hour, never))
		if err != nil || obj.id != "id" {
			t.Fatalf("late retry = %v, %v; want the object that exists", obj, err)
		}
	})
}

func TestTableCreationHasItsOwnDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tbl := NewTable[*thing]("thing", nil)
		hang := func(ctx context.Context) (*thing, error) {
			<-ctx.Done()
			return nil, fmt.Errorf("build: %w", ctx.Err())
		}
		if _, err := tbl.Create(t.Context(), creation(time.Minute, hang)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("create = %v, want DeadlineExceeded", err)
		}
		if err := tbl.Drain(t.Context()); err != nil {
			t.Errorf("drain = %v", err)
		}
	})
}

func TestTableFailedCreationIsForgotten(t *testing.T) {
	tbl := NewTable[*thing]("thing", nil)
	broken := errors.New("broken")
	fail := func(context.Context) (*thing, error) { return nil, broken }
	if _, err := tbl.Create(t.Context(), creation(time.Minute, fail)); !errors.Is(err, broken) {
		t.Fatalf("create = %v, want the build's error", err)
	}
	obj, err := tbl.Create(t.Context(), creation(time.Minute, func(context.Context) (*thing, error) {
		obj := &thing{"id", "name"}
		return obj, tbl.Add(obj)
	}))
	if err != nil || obj.id != "id" {
		t.Errorf("create after a failed one = %v, %v", obj, err)
	}
}

// A call that joins a creation is refused like a call that finds the object: at once if the object
// has a record that does not fit, else when the creation has ended.
func TestTableRefusesWhatCannotBeReused(t *testing.T) {
	refuse := func(*thing) error { return errdefs.ErrAlreadyExists }
	for name, calls := range map[string]struct{ fits, reuse func(*thing) error }{
		"does not fit": {refuse, anyThing}, "cannot be reused": {anyThing, refuse},
	} {
		for _, recorded := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				tbl := NewTable[*thing]("thing", nil)
				end := make(chan struct{})
				build := func(context.Context) (*thing, error) {
					obj := &thing{"id", "name"}
					if recorded {
						defer func() { <-end }()
						return obj, tbl.Add(obj)
					}
					<-end
					return obj, tbl.Add(obj)
				}
				first := make(chan error)
				go func() {
					_, err := tbl.Create(t.Context(), creation(time.Minute, build))
					first <- err
				}()
				synctest.Wait()
				other := creation(time.Minute, func(context.Context) (*thing, error) { return nil, errors.New("built twice") })
				other.Fits, other.Reuse = calls.fits, calls.reuse
				joined := make(chan error, 1)
				go func() {
					_, err := tbl.Create(t.Context(), other)
					joined <- err
				}()
				synctest.Wait()
				if atOnce := len(joined) == 1; atOnce != (recorded && name == "does not fit") {
					t.Errorf("%s, recorded %t: refused at once is %t", name, recorded, atOnce)
				}
				close(end)
				if err := <-first; err != nil {
					t.Errorf("%s: first create = %v", name, err)
				}
				if err := <-joined; !errors.Is(err, errdefs.ErrAlreadyExists) {
					t.Errorf("%s, recorded %t: joining create = %v, want ErrAlreadyExists", name, recorded, err)
				}
				if _, err := tbl.Create(t.Context(), other); !errors.Is(err, errdefs.ErrAlreadyExists) {
					t.Errorf("%s: later create = %v, want ErrAlreadyExists", name, err)
				}
			})
		}
	}
}

func TestLockNamesWhoWaits(t *testing.T) {
	l := NewLock()
	if err := l.Lock(t.Context(), "stop pod x"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := l.Lock(ctx, "remove pod x")
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "remove pod x") {
		t.Errorf("lock = %v, want Canceled with the operation's name", err)
	}
	l.Unlock()
	if err := l.Lock(ctx, "remove pod x"); err != nil {
		t.Errorf("lock of a free lock = %v", err)
	}
}
