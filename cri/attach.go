package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Attach returns the single-use URL on which the container's stdio is served. A client must connect
// within a minute.
func (e *endpoint) Attach(ctx context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := e.CheckAttach(ctx, req.GetContainerId()); err != nil {
		return nil, err
	}
	if err := wantedByAttach(req).check(); err != nil {
		return nil, err
	}
	address, err := e.streams.tickets.issue("attach", req)
	return &runtimeapi.AttachResponse{Url: address}, err
}
