package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PortForward returns the single-use URL on which the pod's ports can be reached. A client must
// connect within a minute.
func (e *endpoint) PortForward(ctx context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if err := e.CheckPortForward(ctx, req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	answer, err := e.streams.library.GetPortForward(req)
	if err != nil {
		return nil, err
	}
	return answer, e.streams.tickets.add(answer.GetUrl(), req)
}
