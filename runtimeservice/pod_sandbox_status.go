package runtimeservice

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/podns"
)

// PodSandboxStatus answers with one pod and all its containers. Errors:
// ErrNotFound, ErrInvalidArgument.
func (s *Service) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	pod, err := s.pods.get(req.GetPodSandboxId())
	if err != nil {
		return nil, fmt.Errorf("pod status: %w", err)
	}
	// The time is taken first: what happens while the status is put together
	// is then newer than it, as the kubelet's event cache needs.
	resp := &runtimeapi.PodSandboxStatusResponse{Timestamp: time.Now().UnixNano(), Status: pod.status(), ContainersStatuses: s.statusesOf(pod.ID)}
	if req.GetVerbose() {
		resp.Info, err = s.podInfo(pod)
	}
	return resp, err
}

// statusesOf answers with the status of every container of a pod that is made.
func (s *Service) statusesOf(podID string) []*runtimeapi.ContainerStatus {
	var statuses []*runtimeapi.ContainerStatus
	for _, c := range s.containersOf(podID) {
		if c.phase() != Creating {
			statuses = append(statuses, c.status())
		}
	}
	return statuses
}

// podInfo is the verbose part, with the fields that tools read from other
// runtimes: pid, and the pod's namespaces as those of an OCI spec.
func (s *Service) podInfo(p *Pod) (map[string]string, error) {
	st := p.snapshot()
	dir := s.podStateDir(p.ID)
	var ns []specs.LinuxNamespace
	if !p.hostNetwork() {
		ns = append(ns,
			specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: filepath.Join(dir, podns.Net)},
			specs.LinuxNamespace{Type: specs.UTSNamespace, Path: filepath.Join(dir, podns.UTS)})
	}
	if !p.hostIPC() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.IPCNamespace, Path: filepath.Join(dir, podns.IPC)})
	}
	if st.InitPid != 0 {
		ns = append(ns, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: filepath.Join(dir, podns.PID)})
	}
	return infoJSON(map[string]any{
		"pid":            st.InitPid,
		"phase":          st.Phase,
		"runtimeHandler": p.Handler,
		"cgroupParent":   p.CgroupParent,
		"config":         p.Config,
		"runtimeSpec":    specs.Spec{Hostname: p.config().GetHostname(), Linux: &specs.Linux{Namespaces: ns}},
	})
}

// infoJSON is how verbose answers carry structured data: one JSON document.
func infoJSON(v any) (map[string]string, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode verbose info: %w", err)
	}
	return map[string]string{"info": string(data)}, nil
}
