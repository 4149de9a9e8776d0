package runtimeservice

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/podns"
	"github.com/micarun/mica/runtimeservice/spec"
	"github.com/micarun/mica/runtimeservice/state"
)

// PodSandboxStatus returns the status of one pod and all its containers. A pod whose record cannot
// be used is not ready. Errors: ErrNotFound, ErrInvalidArgument.
func (s *Service) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	pod, err := s.pods.Get(req.GetPodSandboxId())
	if u, ok := s.unusable.instead(err, state.PodKind, req.GetPodSandboxId()); ok {
		return u.podStatus(req.GetVerbose())
	}
	if err != nil {
		return nil, fmt.Errorf("pod status: %w", err)
	}
	// Taken first, because the kubelet's event cache needs a time before any change that the status
	// may lack.
	resp := &runtimeapi.PodSandboxStatusResponse{Timestamp: time.Now().UnixNano(), Status: pod.status(), ContainersStatuses: s.statusesOf(pod.ID())}
	if req.GetVerbose() {
		resp.Info, err = s.podInfo(pod)
	}
	return resp, err
}

// statusesOf returns the status of every created container of a pod, newest first. A kubelet that
// follows events takes the first of a name as the current one.
func (s *Service) statusesOf(podID string) []*runtimeapi.ContainerStatus {
	var statuses []*runtimeapi.ContainerStatus
	for _, c := range slices.Backward(s.containersOf(podID)) {
		if c.Phase() != state.Creating {
			statuses = append(statuses, c.status())
		}
	}
	return statuses
}

// podInfo returns the verbose information, with the fields that tools read from other runtimes:
// pid, config, cniResult, and the pod's namespaces as in an OCI specification.
func (s *Service) podInfo(p *Pod) (map[string]string, error) {
	st := p.State()
	info := map[string]any{
		"pid":            s.pidOf(p, st),
		"phase":          st.Phase,
		"runtimeHandler": p.Record().Handler,
		"runtimeType":    s.runtimeType(p.Record().Handler),
		"cgroupParent":   p.CgroupParent(),
		"config":         p.currentConfig(st),
		"runtimeSpec":    s.podSpec(p, st),
	}
	if p.hostNetwork() {
		return infoJSON(info)
	}
	result, err := s.network.Attachment(p.ID())
	if err != nil {
		return nil, fmt.Errorf("pod status: %w", err)
	}
	if result != nil {
		info["cniResult"] = result
	}
	return infoJSON(info)
}

// runtimeType returns the type of the OCI runtime of a handler, "" if the handler is no longer
// configured.
func (s *Service) runtimeType(handler string) string {
	h, err := s.handler(handler)
	if err != nil {
		return ""
	}
	return h.Handler().Type
}

// pidOf returns the PID of a process in the pod's namespaces, which tools use to enter them. It is
// the init of a shared PID namespace, or else the oldest running container's process, or 0.
func (s *Service) pidOf(p *Pod, st state.PodState) int {
	if st.InitPid != 0 {
		return st.InitPid
	}
	for _, c := range s.containersOf(p.ID()) {
		if st := c.State(); st.Phase() == state.Running {
			return st.Pid
		}
	}
	return 0
}

// podSpec returns the pod in the form of an OCI specification.
func (s *Service) podSpec(p *Pod, st state.PodState) *specs.Spec {
	linux := &specs.Linux{CgroupsPath: p.CgroupParent(), Sysctl: p.Config().GetLinux().GetSysctls(), Namespaces: s.namespaces(p)}
	if st.InitPid != 0 {
		linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: filepath.Join(s.paths.PodState(p.ID()), podns.PID)})
	}
	// As in the pod's cgroup: what cannot be said of this host was never set.
	if limits, err := s.podLimits(podResources(st.Overhead.Msg, st.Resources.Msg)); err == nil && (st.Overhead.Msg != nil || st.Resources.Msg != nil) {
		linux.Resources = limits
	}
	if users := s.userNamespace(p); users != "" {
		linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: users})
	}
	return &specs.Spec{Version: specs.Version, Hostname: p.Config().GetHostname(), Annotations: spec.PodAnnotations(p.ID(), p.Config()), Linux: linux}
}

// namespaces returns the namespaces that every container of the pod joins.
func (s *Service) namespaces(p *Pod) []specs.LinuxNamespace {
	dir := s.paths.PodState(p.ID())
	var ns []specs.LinuxNamespace
	if !p.hostNetwork() {
		ns = append(ns,
			specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: filepath.Join(dir, podns.Net)},
			specs.LinuxNamespace{Type: specs.UTSNamespace, Path: filepath.Join(dir, podns.UTS)})
	}
	if !p.hostIPC() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.IPCNamespace, Path: filepath.Join(dir, podns.IPC)})
	}
	return ns
}

// currentConfig is the pod's config with the resources that were set last.
func (p *Pod) currentConfig(st state.PodState) *runtimeapi.PodSandboxConfig {
	if st.Overhead.Msg == nil && st.Resources.Msg == nil {
		return p.Config()
	}
	config := proto.CloneOf(p.Config())
	if config.Linux == nil {
		config.Linux = &runtimeapi.LinuxPodSandboxConfig{}
	}
	config.Linux.Overhead, config.Linux.Resources = st.Overhead.Msg, st.Resources.Msg
	return config
}

// infoJSON encodes verbose information as one JSON document, in the form that CRI clients read.
func infoJSON(v any) (map[string]string, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode verbose info: %w", err)
	}
	return map[string]string{"info": string(data)}, nil
}
