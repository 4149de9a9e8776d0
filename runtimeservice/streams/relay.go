package streams

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// relayLinger is how long a client may continue to send to a pod that has ended its side.
	relayLinger = time.Second
	// relayProbe is how often to check that a client still exists that has ended its side. Nothing
	// reads from such a client.
	relayProbe = 15 * time.Second
)

// Relay copies between a connection to a pod and the client's stream until both sides have ended,
// one has disconnected, or ctx has ended. Each side may end its sending first, and the other gets
// that end. It closes pod; the caller closes client. If the pod resets the connection, that is no
// error: it is the response to this connection, not to the client's others. Errors: that of ctx,
// and those of reading and writing.
func Relay(ctx context.Context, pod net.Conn, client io.ReadWriteCloser) error {
	return relay{pod: pod, client: client, probe: relayProbe, linger: relayLinger}.run(ctx)
}

// relay connects a client with a pod. It closes the pod's side.
type relay struct {
	pod           net.Conn
	client        io.ReadWriteCloser
	probe, linger time.Duration
}

// run returns when nothing more can be copied. The goroutine that reads from the client ends with
// run or with the client's stream.
func (r relay) run(ctx context.Context) error {
	defer func() { _ = r.pod.Close() }()
	toPod, toClient := make(chan error, 1), make(chan error, 1)
	go func() { toPod <- r.copyToPod() }()
	go func() { toClient <- r.copyToClient() }()

	ticker := time.NewTicker(r.probe)
	defer ticker.Stop()
	clientEnded := false
	for {
		select {
		case err := <-toPod:
			if abrupt(err) != nil {
				r.reset()
				return err
			}
			// The pod may still send. If it has closed the connection, its last data and the end
			// are still to be read.
			toPod, clientEnded = nil, err == nil
		case err := <-toClient:
			if err == nil && !clientEnded {
				r.letFinish(ctx, toPod)
			} else if err != nil {
				r.reset()
			}
			return abrupt(err)
		case <-ticker.C:
			// Without a reader, a dead client is detected only when a write fails; an empty one
			// suffices.
			if clientEnded {
				if _, err := r.client.Write(nil); err != nil {
					return nil
				}
			}
		case <-ctx.Done():
			r.reset()
			return ctx.Err()
		}
	}
}

// letFinish gives the client some time to end its side after the pod has ended its own. toPod is
// nil if nothing reads from the client any more.
func (r relay) letFinish(ctx context.Context, toPod <-chan error) {
	if toPod != nil {
		timer := time.NewTimer(r.linger)
		defer timer.Stop()
		select {
		case <-toPod:
			return
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	r.reset()
}

func (r relay) copyToPod() error {
	if _, err := io.Copy(r.pod, r.client); err != nil {
		return fmt.Errorf("copy to the pod: %w", err)
	}
	if half, ok := r.pod.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // an error also ends the other direction
	}
	return nil
}

func (r relay) copyToClient() error {
	if _, err := io.Copy(r.client, r.pod); err != nil {
		return fmt.Errorf("copy to the client: %w", err)
	}
	// Close ends only the direction to the client; the client may still send.
	return r.client.Close()
}

// reset ends both directions of the client's stream if the stream supports that (SPDY), and thereby
// the goroutine that reads from it.
func (r relay) reset() {
	if stream, ok := r.client.(interface{ Reset() error }); ok {
		_ = stream.Reset()
	}
}

// abrupt returns nil for the errors of a connection that a peer has closed or reset.
func abrupt(err error) error {
	for _, end := range []error{unix.ECONNRESET, unix.EPIPE, net.ErrClosed, io.ErrClosedPipe} {
		if errors.Is(err, end) {
			return nil
		}
	}
	return err
}
