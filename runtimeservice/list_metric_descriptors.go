package runtimeservice

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListMetricDescriptors answers with every metric that ListPodSandboxMetrics
// may have.
func (s *Service) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	resp := &runtimeapi.ListMetricDescriptorsResponse{}
	for _, f := range families() {
		resp.Descriptors = append(resp.Descriptors, f.descriptor())
	}
	return resp, nil
}
