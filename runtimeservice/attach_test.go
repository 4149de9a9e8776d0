package runtimeservice

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

func TestAttachSessionEnds(t *testing.T) {
	closed, open := make(chan struct{}), make(chan struct{})
	close(closed)
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	const never = time.Hour
	tests := map[string]struct {
		ctx  context.Context
		a    attachSession
		ends bool
	}{
		"all output copied":                   {t.Context(), attachSession{output: closed, exited: open, linger: never}, true},
		"container ended, output still to go": {t.Context(), attachSession{output: open, exited: closed, linger: never}, false},
		"container ended, no output wanted":   {t.Context(), attachSession{input: open, exited: closed, linger: never}, true},
		"client gone":                         {gone, attachSession{input: open, output: open, exited: open, linger: never}, true},
		"input ended, after a while":          {t.Context(), attachSession{input: closed, output: open, exited: open, linger: 1}, true},
		"input ended, the answer counts":      {t.Context(), attachSession{input: closed, output: open, exited: open, linger: 1, outliveInput: true}, false},
		"nothing ended":                       {t.Context(), attachSession{input: open, output: open, exited: open, linger: 1}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			ctx, cancel := context.WithTimeout(tt.ctx, 10*time.Second)
			if !tt.ends {
				cancel()
				ctx, cancel = context.WithTimeout(tt.ctx, 50*time.Millisecond)
			}
			defer cancel()
			tt.a.wait(ctx)
			if ended := ctx.Err() == nil || tt.ctx.Err() != nil; ended != tt.ends {
				t.Errorf("session ended = %t, want %t", ended, tt.ends)
			}
		})
	}
}

// buffer is a writer that remembers whether it was closed.
type buffer struct {
	bytes.Buffer
	closed bool
}

func (b *buffer) Close() error { b.closed = true; return nil }

func TestFeedPassesTheEndOn(t *testing.T) {
	var to buffer
	<-feed(&to, strings.NewReader("input"))
	if to.String() != "input" || !to.closed {
		t.Errorf("container got %q and the end: %t", to.String(), to.closed)
	}
	if feed(&to, nil) != nil {
		t.Error("an input that is not there ends")
	}
}

// deaf is the input of a container that has closed it.
type deaf struct{}

func (deaf) Write([]byte) (int, error) { return 0, unix.EPIPE }
func (deaf) Close() error              { return nil }

// Only the client ends its input: a container that does not read goes on to be
// listened to.
func TestFeedWaitsForTheClient(t *testing.T) {
	for name, to := range map[string]io.WriteCloser{"no input": nil, "closed input": deaf{}} {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			from, client := io.Pipe()
			done := feed(to, from)
			for range 3 { // must not be held up
				if _, err := client.Write([]byte("line")); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case <-done:
				t.Error("the input ended before the client ended it")
			default:
			}
			_ = client.Close()
			<-done
		})
	}
}

func TestDrain(t *testing.T) {
	var out, errs buffer
	stream := func(text string) io.ReadCloser { return io.NopCloser(strings.NewReader(text)) }
	<-drain(copyStream{to: &out, from: stream("out")}, copyStream{to: &errs, from: stream("err")})
	if out.String() != "out" || errs.String() != "err" {
		t.Errorf("copied %q and %q", out.String(), errs.String())
	}
	if drain(copyStream{to: &out}) != nil {
		t.Error("an output that is not there ends")
	}
}

func TestFollowSize(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	sizes, ended := make(chan remotecommand.TerminalSize), make(chan struct{})
	got := make(chan remotecommand.TerminalSize)
	go followSize(ended, sizes, func(s remotecommand.TerminalSize) { got <- s })
	sizes <- remotecommand.TerminalSize{Width: 0, Height: 5} // some clients send this first
	want := remotecommand.TerminalSize{Width: 80, Height: 25}
	sizes <- want
	if s := <-got; s != want {
		t.Errorf("size = %v, want %v", s, want)
	}
	close(ended)

	closing := make(chan remotecommand.TerminalSize)
	close(closing)
	followSize(nil, closing, nil) // returns
}
