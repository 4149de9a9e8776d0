package cri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxPorts is the number of ports in a request. Each has two of the 255 channels of a WebSocket.
const maxPorts = 127

// PortForward returns the single-use URL on which the pod's ports can be reached. A client must
// connect within a minute.
func (e *endpoint) PortForward(ctx context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if err := e.CheckPortForward(ctx, req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if n := len(req.GetPort()); n > maxPorts {
		return nil, fmt.Errorf("forward %d ports: more than %d: %w", n, maxPorts, errdefs.ErrInvalidArgument)
	}
	address, err := e.streams.tickets.issue("portforward", req)
	return &runtimeapi.PortForwardResponse{Url: address}, err
}
