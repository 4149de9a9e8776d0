package runtimeservice

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StreamPodSandboxMetrics is ListPodSandboxMetrics in messages of bounded size,
// each sent as soon as its pods are read.
func (s *Service) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, stream runtimeapi.RuntimeService_StreamPodSandboxMetricsServer) error {
	run, err := s.newMetricsRun()
	if err != nil {
		return err
	}
	return gatherAndSend(stream.Context(), s.readyPods("", nil), run.pod, func(chunk []*runtimeapi.PodSandboxMetrics) error {
		return stream.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: chunk})
	})
}
