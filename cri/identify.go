package cri

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// identify returns key-value pairs for the log that identify a request's object. It picks only
// names and IDs: requests also carry credentials and environments.
func identify(req any) []any {
	var kv []any
	add := func(key, value string) {
		if value != "" {
			kv = append(kv, key, value)
		}
	}
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok {
		add("pod", r.GetPodSandboxId())
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok {
		add("container", r.GetContainerId())
	}
	if r, ok := req.(interface{ GetImage() *runtimeapi.ImageSpec }); ok {
		add("image", r.GetImage().GetImage())
	}
	if r, ok := req.(interface {
		GetConfig() *runtimeapi.PodSandboxConfig
	}); ok {
		meta := r.GetConfig().GetMetadata()
		add("podName", meta.GetNamespace()+"/"+meta.GetName())
		add("podUID", meta.GetUid())
	}
	if r, ok := req.(interface {
		GetConfig() *runtimeapi.ContainerConfig
	}); ok {
		add("containerName", r.GetConfig().GetMetadata().GetName())
		add("image", r.GetConfig().GetImage().GetImage())
	}
	return kv
}
