package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/runtimeservice/podns"
)

const (
	// dialTimeout bounds the connecting to a port of a pod, which is local.
	dialTimeout = 10 * time.Second
	// forwardLinger is how long a client may go on sending to a pod that has
	// ended its side.
	forwardLinger = time.Second
	// forwardProbe is how often it is asked whether a client that has ended
	// its side, and so is not read from any more, is still there.
	forwardProbe = 15 * time.Second
)

// CheckPortForward returns nil if ports of the pod can be reached. Errors:
// ErrNotFound, ErrInvalidArgument, ErrFailedPrecondition (not ready).
func (s *Service) CheckPortForward(_ context.Context, podID string) error {
	_, err := s.forwardedPod(podID)
	return err
}

// ServePortForward connects the client's stream to a TCP port on the pod's
// loopback address, or the node's for a pod on the node's network, until both
// sides have ended or one is gone. Each side may end its sending first; the
// other is told so. A pod that resets the connection is no error: it is the
// answer to this connection, not to the client's others. Errors: as
// CheckPortForward, ErrInvalidArgument (port), and the kernel's for the
// connecting.
func (s *Service) ServePortForward(ctx context.Context, podID string, port int32, stream io.ReadWriteCloser) error {
	p, err := s.forwardedPod(podID)
	if err != nil {
		return err
	}
	if port < 1 || port > 65535 {
		return fmt.Errorf("forward to pod %s: port %d: %w", p.ID, port, errdefs.ErrInvalidArgument)
	}
	netns := filepath.Join(s.podStateDir(p.ID), podns.Net)
	if p.hostNetwork() {
		netns = ""
	}
	dial, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := podns.DialTCP(dial, netns, uint16(port))
	if err != nil {
		return fmt.Errorf("forward to pod %s: %w", p.ID, err)
	}
	if err := (relay{pod: conn, client: stream, probe: forwardProbe, linger: forwardLinger}).run(ctx); err != nil {
		return fmt.Errorf("forward to pod %s: %w", p.ID, err)
	}
	return nil
}

func (s *Service) forwardedPod(id string) (*Pod, error) {
	p, err := s.pods.get(id)
	if err != nil {
		return nil, fmt.Errorf("cannot forward to a port of pod: %w", err)
	}
	return p, p.require("forward to a port of", PodReady)
}

// relay connects a client with a pod. It closes the pod's side.
type relay struct {
	pod           net.Conn
	client        io.ReadWriteCloser
	probe, linger time.Duration
}

// run returns when nothing more is to be copied. The goroutine that reads from
// the client ends with it, or with the client's stream.
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
			// The pod may have more to say. If it has gone, what it said last
			// is still to be read, and then its end.
			toPod, clientEnded = nil, err == nil
		case err := <-toClient:
			if err == nil && !clientEnded {
				r.letFinish(ctx, toPod)
			} else if err != nil {
				r.reset()
			}
			return abrupt(err)
		case <-ticker.C:
			// Who does not read from a client learns of its death by a write,
			// of nothing, which fails then.
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

// letFinish gives the client a moment to end its side after the pod has ended
// its own. A nil toPod says that nobody reads from the client any more.
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
		_ = half.CloseWrite() // fails if the pod has gone, which the other direction tells
	}
	return nil
}

func (r relay) copyToClient() error {
	if _, err := io.Copy(r.client, r.pod); err != nil {
		return fmt.Errorf("copy to the client: %w", err)
	}
	// Closing a stream ends our sending only; the client may go on.
	return r.client.Close()
}

// reset ends both directions of the client's stream, where it has such an end
// (SPDY), and with that the goroutine that reads from it.
func (r relay) reset() {
	if stream, ok := r.client.(interface{ Reset() error }); ok {
		_ = stream.Reset()
	}
}

// abrupt is nil for the ways in which a peer ends a connection without a word.
func abrupt(err error) error {
	for _, end := range []error{unix.ECONNRESET, unix.EPIPE, net.ErrClosed, io.ErrClosedPipe} {
		if errors.Is(err, end) {
			return nil
		}
	}
	return err
}
