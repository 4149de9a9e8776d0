package runtimeservice

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/micarun/mica/runtimeservice/podns"
	"github.com/micarun/mica/runtimeservice/streams"
)

// dialTimeout limits connecting to a port of a pod, which is local.
const dialTimeout = 10 * time.Second

// CheckPortForward returns nil if ports of the pod can be reached. Errors:
// ErrNotFound, ErrInvalidArgument, ErrFailedPrecondition (not ready).
func (s *Service) CheckPortForward(_ context.Context, podID string) error {
	_, err := s.forwardedPod(podID)
	return err
}

// ServePortForward connects the client's stream with a TCP port on the loopback address of the pod,
// or of the node for a pod in the host network, as [streams.Relay] does. Errors: those of
// CheckPortForward, ErrInvalidArgument (port), and the kernel's for the connection.
func (s *Service) ServePortForward(ctx context.Context, podID string, port int32, stream io.ReadWriteCloser) error {
	p, err := s.forwardedPod(podID)
	if err != nil {
		return err
	}
	if port < 1 || port > 65535 {
		return fmt.Errorf("forward to pod %s: port %d: %w", p.ID(), port, errdefs.ErrInvalidArgument)
	}
	netns := filepath.Join(s.paths.PodState(p.ID()), podns.Net)
	if p.hostNetwork() {
		netns = ""
	}
	dial, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := podns.DialTCP(dial, netns, uint16(port))
	if err != nil {
		return fmt.Errorf("forward to pod %s: %w", p.ID(), err)
	}
	if err := streams.Relay(ctx, conn, stream); err != nil {
		return fmt.Errorf("forward to pod %s: %w", p.ID(), err)
	}
	return nil
}

func (s *Service) forwardedPod(id string) (*Pod, error) {
	p, err := s.pods.Get(id)
	if err != nil {
		return nil, fmt.Errorf("cannot forward to a port of pod: %w", err)
	}
	return p, p.RequireReady("forward to a port of")
}
