package runtimeservice

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdateRuntimeConfig gives the node's pod CIDR to the network. If a template is configured, the
// network writes its configuration from it. An empty CIDR changes nothing. Errors: the network's.
func (s *Service) UpdateRuntimeConfig(ctx context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if cidr := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(); cidr != "" {
		if err := s.network.UpdateRuntimeConfig(ctx, cidr); err != nil {
			return nil, fmt.Errorf("update runtime config: %w", err)
		}
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}
