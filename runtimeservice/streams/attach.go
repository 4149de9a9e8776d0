package streams

import (
	"context"
	"io"
	"sync"
	"time"
)

// attachLinger is how long the session waits for output after the client's input has ended.
const attachLinger = time.Second

// AttachArgs are the two ends of an attach session.
type AttachArgs struct {
	// In, Out and Err are the client's streams, nil for those that it did not request.
	In       io.Reader
	Out, Err io.Writer
	// Stdin, Stdout and Stderr are the container's, nil for those that it does not have or the
	// client did not request. Attach closes Stdin after the end of In; the caller closes the
	// others.
	Stdin          io.WriteCloser
	Stdout, Stderr io.ReadCloser
	// Exited is closed when the container has exited.
	Exited <-chan struct{}
	// OutliveInput keeps the session until the end of the output. Otherwise it ends one second
	// after the client's input.
	OutliveInput bool
}

// Attach copies until all output is copied, the client's input has ended, the container has exited
// (without output to copy) or ctx has ended. The copying goroutines end when the caller closes the
// streams of both sides.
func Attach(ctx context.Context, a AttachArgs) {
	session{
		input:        feed(a.Stdin, a.In),
		output:       drain(copyStream{to: a.Out, from: a.Stdout}, copyStream{to: a.Err, from: a.Stderr}),
		exited:       a.Exited,
		linger:       attachLinger,
		outliveInput: a.OutliveInput,
	}.wait(ctx)
}

// session is what can end an attach session.
type session struct {
	input        <-chan struct{} // closed at the end of the client's input; nil without one
	output       <-chan struct{} // closed when all output is copied; nil without any
	exited       <-chan struct{} // closed when the container has exited
	linger       time.Duration   // wait for output after the end of the input
	outliveInput bool            // wait for the output, also after the end of the input
}

func (a session) wait(ctx context.Context) {
	exited := a.exited
	if a.output != nil {
		exited = nil // the last output still has to be copied
	}
	select {
	case <-a.output:
		return
	case <-exited:
		return
	case <-ctx.Done():
		return
	case <-a.input:
	}
	var lingered <-chan time.Time
	if !a.outliveInput {
		timer := time.NewTimer(a.linger)
		defer timer.Stop()
		lingered = timer.C
	}
	select {
	case <-a.output:
	case <-exited:
	case <-ctx.Done():
	case <-lingered:
	}
}

// feed copies the client's input to the container in the background until the client ends it, and
// closes the container's end. It drops the input if the container has no stdin or has closed it.
// The result is closed at the end of the client's input, and nil for a client without input.
func feed(to io.WriteCloser, from io.Reader) <-chan struct{} {
	if from == nil {
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if to != nil {
			_, err := io.Copy(to, from)
			_ = to.Close()
			if err == nil {
				return
			}
		}
		_, _ = io.Copy(io.Discard, from)
	}()
	return done
}

// copyStream is one stream of output and the client's end of it.
type copyStream struct {
	to   io.Writer
	from io.ReadCloser
}

// drain copies the existing streams in the background, each until either side ends. The result is
// closed after the last, and nil if there is none.
func drain(streams ...copyStream) <-chan struct{} {
	var group sync.WaitGroup
	copies := 0
	for _, stream := range streams {
		if stream.from == nil {
			continue
		}
		copies++
		group.Go(func() { _, _ = io.Copy(stream.to, stream.from) })
	}
	if copies == 0 {
		return nil
	}
	done := make(chan struct{})
	go func() {
		group.Wait()
		close(done)
	}()
	return done
}
