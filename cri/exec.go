package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Exec returns the single-use URL on which the command runs. A client must connect within a minute.
func (e *endpoint) Exec(ctx context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := e.CheckExec(ctx, req.GetContainerId()); err != nil {
		return nil, err
	}
	if err := wantedByExec(req).check(); err != nil {
		return nil, err
	}
	address, err := e.streams.tickets.issue("exec", req)
	return &runtimeapi.ExecResponse{Url: address}, err
}
