package streams

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestSessionEnds(t *testing.T) {
	closed, open := make(chan struct{}), make(chan struct{})
	close(closed)
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	const never = time.Hour
	tests := map[string]struct {
		ctx  context.Context
		a    session
		ends bool
	}{
		"all output copied":                     {t.Context(), session{output: closed, exited: open, linger: never}, true},
		"container exited, output left":         {t.Context(), session{output: open, exited: closed, linger: never}, false},
		"container exited, no output requested": {t.Context(), session{input: open, exited: closed, linger: never}, true},
		"client disconnected":                   {gone, session{input: open, output: open, exited: open, linger: never}, true},
		"input ended, after a while":            {t.Context(), session{input: closed, output: open, exited: open, linger: 1}, true},
		"input ended, output outlives it":       {t.Context(), session{input: closed, output: open, exited: open, linger: 1, outliveInput: true}, false},
		"nothing ended":                         {t.Context(), session{input: open, output: open, exited: open, linger: 1}, false},
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
		t.Error("a missing input ends")
	}
}

// closedInput is the input of a container that has closed it.
type closedInput struct{}

func (closedInput) Write([]byte) (int, error) { return 0, unix.EPIPE }
func (closedInput) Close() error              { return nil }

// Only the client ends its input. The session with a container that does not read goes on.
func TestFeedWaitsForTheClient(t *testing.T) {
	for name, to := range map[string]io.WriteCloser{"no input": nil, "closed input": closedInput{}} {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			from, client := io.Pipe()
			done := feed(to, from)
			for range 3 { // must not block
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
		t.Error("a missing output ends")
	}
}

func TestAttach(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	var stdin, out buffer
	exited := make(chan struct{})
	Attach(t.Context(), AttachArgs{
		In: strings.NewReader("question"), Out: &out, Stdin: &stdin, Stdout: io.NopCloser(strings.NewReader("answer")),
		Exited: exited, OutliveInput: true,
	})
	if out.String() != "answer" {
		t.Errorf("client got %q, want the whole output", out.String())
	}
	close(exited)
	Attach(t.Context(), AttachArgs{Exited: exited}) // returns: there is nothing to copy
}
