package runtimeservice

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

type thing struct{ ID, name string }

func (t *thing) id() string       { return t.ID }
func (t *thing) identity() string { return t.name }

func reuseAny(*thing) error { return nil }

func TestTableGet(t *testing.T) {
	tbl := newTable[*thing]("thing")
	for _, id := range []string{"abc1", "abc2", "abd", "ab"} {
		if err := tbl.add(&thing{id, "name-" + id}); err != nil {
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
		got, err := tbl.get(tc.id)
		if !errors.Is(err, tc.err) || (err == nil && got.ID != tc.want) {
			t.Errorf("get(%q) = %v, %v; want %q, %v", tc.id, got, err, tc.want, tc.err)
		}
	}
}

func TestTableNameIsReservedUntilRemoved(t *testing.T) {
	tbl := newTable[*thing]("thing")
	first := &thing{"a", "name"}
	if err := tbl.add(first); err != nil {
		t.Fatal(err)
	}
	if err := tbl.add(&thing{"b", "name"}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("second add = %v, want ErrAlreadyExists", err)
	}
	tbl.remove(first)
	if err := tbl.add(&thing{"b", "name"}); err != nil {
		t.Errorf("add after remove = %v", err)
	}
}

func TestTableJoinsCreations(t *testing.T) {
	tbl := newTable[*thing]("thing")
	var builds atomic.Int32
	build := func(context.Context) (*thing, error) {
		builds.Add(1)
		time.Sleep(20 * time.Millisecond)
		obj := &thing{"id", "name"}
		return obj, tbl.add(obj)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			obj, err := tbl.create(t.Context(), "name", time.Minute, reuseAny, build)
			if err != nil || obj.ID != "id" {
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
		tbl := newTable[*thing]("thing")
		build := func(ctx context.Context) (*thing, error) {
			select {
			case <-time.After(time.Minute):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			obj := &thing{"id", "name"}
			return obj, tbl.add(obj)
		}
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := tbl.create(impatient, "name", time.Hour, reuseAny, build); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("first create = %v, want DeadlineExceeded", err)
		}
		never := func(context.Context) (*thing, error) { return nil, errors.New("built twice") }
		obj, err := tbl.create(t.Context(), "name", time.Hour, reuseAny, never)
		if err != nil || obj.ID != "id" {
			t.Fatalf("retry = %v, %v; want the object of the first call", obj, err)
		}
		obj, err = tbl.create(t.Context(), "name", time.Hour, reuseAny, never)
		if err != nil || obj.ID != "id" {
			t.Fatalf("late retry = %v, %v; want the object that exists", obj, err)
		}
	})
}

func TestTableCreationHasItsOwnDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tbl := newTable[*thing]("thing")
		hang := func(ctx context.Context) (*thing, error) {
			<-ctx.Done()
			return nil, fmt.Errorf("build: %w", ctx.Err())
		}
		if _, err := tbl.create(t.Context(), "name", time.Minute, reuseAny, hang); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("create = %v, want DeadlineExceeded", err)
		}
		if err := tbl.drain(t.Context()); err != nil {
			t.Errorf("drain = %v", err)
		}
	})
}

func TestTableFailedCreationIsForgotten(t *testing.T) {
	tbl := newTable[*thing]("thing")
	broken := errors.New("broken")
	fail := func(context.Context) (*thing, error) { return nil, broken }
	if _, err := tbl.create(t.Context(), "name", time.Minute, reuseAny, fail); !errors.Is(err, broken) {
		t.Fatalf("create = %v, want the build's error", err)
	}
	obj, err := tbl.create(t.Context(), "name", time.Minute, reuseAny, func(context.Context) (*thing, error) {
		obj := &thing{"id", "name"}
		return obj, tbl.add(obj)
	})
	if err != nil || obj.ID != "id" {
		t.Errorf("create after a failed one = %v, %v", obj, err)
	}
}

func TestTableRefusesWhatCannotBeReused(t *testing.T) {
	tbl := newTable[*thing]("thing")
	if err := tbl.add(&thing{"id", "name"}); err != nil {
		t.Fatal(err)
	}
	refuse := func(*thing) error { return errdefs.ErrAlreadyExists }
	build := func(context.Context) (*thing, error) { return nil, errors.New("built over an existing object") }
	if _, err := tbl.create(t.Context(), "name", time.Minute, refuse, build); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("create = %v, want ErrAlreadyExists", err)
	}
}

func TestOpLockNamesWhoWaits(t *testing.T) {
	l := newOpLock()
	if err := l.lock(t.Context(), "stop pod x"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := l.lock(ctx, "remove pod x")
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "remove pod x") {
		t.Errorf("lock = %v, want Canceled with the operation's name", err)
	}
	l.unlock()
	if err := l.lock(ctx, "remove pod x"); err != nil {
		t.Errorf("lock of a free lock = %v", err)
	}
}
