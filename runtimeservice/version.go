package runtimeservice

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// runtimeName is what nodes show as their container runtime.
	runtimeName = "mica"
	// kubeletAPIVersion is the version of the kubelet's runtime API; every
	// runtime answers with it.
	kubeletAPIVersion = "0.1.0"
	criVersion        = "v1"
)

// Version returns the runtime's name and version. It cannot fail.
func (s *Service) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version: kubeletAPIVersion, RuntimeName: runtimeName, RuntimeVersion: s.opts.Version, RuntimeApiVersion: criVersion,
	}, nil
}
