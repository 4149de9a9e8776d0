package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/micarun/mica/internal/admin"
)

const (
	// maxProfileTime bounds the collection of one profile.
	maxProfileTime = 5 * time.Minute
	// maxTrace is the size in bytes at which the collection of a trace ends early.
	maxTrace = 64 << 20
)

// Profile implements admin.Daemon. Only one profile of each kind is collected at a time.
func (d *daemon) Profile(ctx context.Context, args admin.ProfileArgs, w io.Writer) error {
	wait := time.Duration(args.Seconds) * time.Second
	if timed := args.Kind == "cpu" || args.Kind == "trace"; timed && (wait <= 0 || wait > maxProfileTime) {
		return fmt.Errorf("collect profile: %d seconds are not between 1 and %d: %w", args.Seconds, int(maxProfileTime.Seconds()), errdefs.ErrInvalidArgument)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	switch args.Kind {
	case "cpu":
		return profileProcessor(ctx, w)
	case "trace":
		return recordTrace(ctx, w)
	case "heap":
		runtime.GC() // the profile shows the heap after the last collection
	case "goroutine":
	default:
		return fmt.Errorf("collect profile: unknown kind %q: %w", args.Kind, errdefs.ErrInvalidArgument)
	}
	if err := pprof.Lookup(args.Kind).WriteTo(w, 0); err != nil {
		return fmt.Errorf("write %s profile: %w", args.Kind, err)
	}
	return nil
}

// profileProcessor profiles the use of processors until ctx ends.
func profileProcessor(ctx context.Context, w io.Writer) error {
	var profile bytes.Buffer // its size depends on the number of different stacks only
	if err := pprof.StartCPUProfile(&profile); err != nil {
		return fmt.Errorf("collect cpu profile: %w", err)
	}
	<-ctx.Done()
	pprof.StopCPUProfile()
	if _, err := profile.WriteTo(w); err != nil {
		return fmt.Errorf("write cpu profile: %w", err)
	}
	return nil
}

// recordTrace records the execution until ctx ends, w returns an error, or the trace is large.
func recordTrace(ctx context.Context, w io.Writer) error {
	out := &traceWriter{to: w, full: make(chan struct{})}
	if err := trace.Start(out); err != nil {
		return fmt.Errorf("collect trace: %w", err)
	}
	select {
	case <-ctx.Done():
	case <-out.full:
	}
	trace.Stop() // returns after the last write
	return out.err
}

// traceWriter closes full after an error or when the trace has reached maxTrace. The remaining
// events are still written, because a trace without its end cannot be read.
type traceWriter struct {
	to   io.Writer
	size int64
	err  error // the first one
	full chan struct{}
	once sync.Once // closes full
}

func (t *traceWriter) Write(b []byte) (int, error) {
	if t.err == nil {
		if _, err := t.to.Write(b); err != nil {
			t.err = fmt.Errorf("write trace: %w", err)
		}
	}
	if t.size += int64(len(b)); t.size >= maxTrace || t.err != nil {
		t.once.Do(func() { close(t.full) })
	}
	return len(b), t.err
}
