package oci

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// unreadable returns a Direct whose seccomp profile has the key. The filter cannot be read.
func unreadable(key string, attempts *int) *Direct {
	return &Direct{Profile: Profile{direct: true, seccomp: key}, Seccomp: func() (*specs.LinuxSeccomp, error) {
		*attempts++
		return nil, errors.New("unreadable")
	}}
}

// A filter too many costs one of those that are known.
func TestFiltersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f filters
		var attempts int
		for n := range 2 * maxFilters {
			_, err := f.of(nil, unreadable(fmt.Sprint(n), &attempts))
			if !errors.As(err, &unreadFilter{}) {
				t.Fatalf("filter %d: %v", n, err)
			}
			synctest.Wait()
			if want := min(n+1, maxFilters); len(f.known) != want {
				t.Fatalf("%d filters after %d, want %d", len(f.known), n+1, want)
			}
		}
	})
}

// While as many filters as can be kept are being read, the reading of another does not begin.
func TestFiltersInProgressAreBounded(t *testing.T) {
	f := filters{known: map[string]*capture{}}
	for n := range maxFilters {
		f.known[fmt.Sprint(n)] = &capture{done: make(chan struct{})}
	}
	var attempts int
	_, err := f.of(nil, unreadable("another", &attempts))
	if !errors.Is(err, errIndirect) || errors.As(err, &unreadFilter{}) || len(f.known) != maxFilters {
		t.Errorf("%v with %d filters", err, len(f.known))
	}
}

// A filter that cannot be read is tried again, less and less often.
func TestFilterIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f filters
		var attempts int
		d := unreadable("profile", &attempts)
		for range 24 * 60 {
			_, err := f.of(nil, d)
			if !errors.Is(err, errIndirect) {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		synctest.Wait()
		// after 0, 1, 3, 7, 15, 31 and 63 minutes, and then every hour, each up to a minute later
		if attempts < 25 || attempts > 30 {
			t.Errorf("%d attempts in a day", attempts)
		}
	})
}

// An exec that has ended waits only a moment for a filter.
func TestAwaitFilterIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		awaitFilter(t.Context(), unreadFilter{make(chan struct{})})
		if waited := time.Since(begin); waited != filterWait {
			t.Errorf("waited %s, want %s", waited, filterWait)
		}
	})
}
