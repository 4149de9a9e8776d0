package admin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

type fakeDaemon struct {
	stop      func(StopArgs) error
	profiling func() // is called during each profile
}

func (fakeDaemon) Info(context.Context) (Info, error) {
	return Info{Version: "v1", Pid: 7, Started: time.Unix(1, 0).UTC(), Runtimes: []Runtime{{Path: "/usr/sbin/runc"}}}, nil
}

func (fakeDaemon) Check(_ context.Context, args CheckArgs) ([]Problem, error) {
	if args.Content {
		return []Problem{{Path: "/x", What: "rotten"}}, nil
	}
	return nil, nil
}

func (fakeDaemon) Events(ctx context.Context, args EventsArgs, emit func(Event) error) error {
	if err := emit(Event{What: "run pod", Pod: "p", Stages: []Stage{{Name: "make cgroup", Seconds: 0.5}}}); err != nil {
		return err
	}
	if !args.Follow {
		return errors.New("the end")
	}
	<-ctx.Done()
	return nil
}

// Profile writes a first part, and then fails or waits for ctx.
func (d fakeDaemon) Profile(ctx context.Context, args ProfileArgs, w io.Writer) error {
	if args.Kind == "unknown" {
		return errors.New("no such kind")
	}
	if _, err := io.WriteString(w, "samples"); err != nil {
		return err
	}
	if args.Seconds > 0 {
		d.profiling()
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (d fakeDaemon) Stop(_ context.Context, args StopArgs) error { return d.stop(args) }

// serve runs a daemon until the test ends.
func serve(t *testing.T, d Daemon) *Client {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, d) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
		goleak.VerifyNone(t, leaks)
	})
	return NewClient(path)
}

func TestAnswersArriveAsSent(t *testing.T) {
	c := serve(t, fakeDaemon{})
	got, err := c.Info(t.Context())
	want, _ := fakeDaemon{}.Info(t.Context())
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("info: %+v, %v", got, err)
	}
	problems, err := c.Check(t.Context(), CheckArgs{Content: true})
	if err != nil || len(problems) != 1 || problems[0] != (Problem{Path: "/x", What: "rotten"}) {
		t.Errorf("deep check: %v, %v", problems, err)
	}
	if problems, err := c.Check(t.Context(), CheckArgs{}); err != nil || len(problems) != 0 {
		t.Errorf("check: %v, %v", problems, err)
	}
}

func TestEvents(t *testing.T) {
	c := serve(t, fakeDaemon{})
	want := Event{What: "run pod", Pod: "p", Stages: []Stage{{Name: "make cgroup", Seconds: 0.5}}}
	var got []Event
	hear := func(e Event) error {
		got = append(got, e)
		return nil
	}
	if err := c.Events(t.Context(), EventsArgs{}, hear); err == nil || err.Error() != "the end" {
		t.Errorf("the client returns a stream's error as %v", err)
	}
	if !cmp.Equal(got, []Event{want}) {
		t.Errorf("events: %+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.Events(ctx, EventsArgs{Follow: true}, func(Event) error { cancel(); return nil }); err != nil {
		t.Errorf("a follower that disconnects: %v", err)
	}
	full := errors.New("full")
	if err := c.Events(t.Context(), EventsArgs{Follow: true}, func(Event) error { return full }); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}

// For a follower, the events end when the daemon stops, and the follower does not delay that.
func TestFollowerDoesNotHoldTheDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, fakeDaemon{}) }()
	if err := NewClient(path).Events(t.Context(), EventsArgs{Follow: true}, func(Event) error { end(); return nil }); err != nil {
		t.Errorf("events: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestProfile(t *testing.T) {
	c := serve(t, fakeDaemon{})
	var got bytes.Buffer
	if err := c.Profile(t.Context(), ProfileArgs{Kind: "heap"}, &got); err != nil || got.String() != "samples" {
		t.Errorf("got %q, %v", got.String(), err)
	}
	got.Reset()
	err := c.Profile(t.Context(), ProfileArgs{Kind: "unknown"}, &got)
	if err == nil || err.Error() != "no such kind" || got.Len() > 0 {
		t.Errorf("got %q, %v", got.String(), err)
	}
}

// Neither a client that disconnects nor the daemon's end waits for a profile, and the client never
// takes an incomplete profile for a complete one.
func TestProfileEndsEarly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	asked, disconnect := context.WithCancel(t.Context())
	defer disconnect()
	interrupt := make(chan func(), 2)
	interrupt <- disconnect
	interrupt <- end
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, fakeDaemon{profiling: func() { (<-interrupt)() }}) }()
	args := ProfileArgs{Kind: "cpu", Seconds: 1}
	if err := NewClient(path).Profile(asked, args, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that disconnects gets %v", err)
	}
	if err := NewClient(path).Profile(t.Context(), args, io.Discard); err == nil {
		t.Error("an incomplete profile is no error")
	}
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestErrorsKeepTheirText(t *testing.T) {
	var asked []StopArgs
	c := serve(t, fakeDaemon{stop: func(args StopArgs) error {
		asked = append(asked, args)
		if args.Everything {
			return errors.New("the node has 2 pods")
		}
		return nil
	}})
	if err := c.Stop(t.Context(), StopArgs{Everything: true}); err == nil || err.Error() != "the node has 2 pods" {
		t.Errorf("got %v", err)
	}
	if err := c.Stop(t.Context(), StopArgs{}); err != nil {
		t.Errorf("got %v", err)
	}
	if len(asked) != 2 {
		t.Errorf("the daemon received %v", asked)
	}
}

func TestNoDaemonIsUnavailable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if _, err := NewClient(path).Info(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("no socket: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	if _, err := NewClient(path).Info(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("dead socket: %v", err)
	}
}

func TestUnknownPathSaysSo(t *testing.T) {
	c := serve(t, fakeDaemon{})
	err := c.call(t.Context(), "POST", "/nothing", struct{}{}, &struct{}{})
	if err == nil || !strings.Contains(err.Error(), "POST /nothing: 404") {
		t.Errorf("got %v", err)
	}
}
