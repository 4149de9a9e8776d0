package runtimeservice

import (
	"maps"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/state"
	"github.com/micarun/mica/runtimeservice/stats"
)

// Pod is a set of pinned namespaces, a cgroup and a record. Its only process of its own is the init
// of a shared PID namespace, if there is one.
type Pod struct {
	*state.Pod // what is stored

	// The fields below are not stored. A restart of the daemon loses them.

	op *state.Lock // held by RunPodSandbox's building, Stop and Remove
	// initOp is held while the init of the shared PID namespace is started. Taken after a
	// container's op, never together with the pod's.
	initOp *state.Lock
	usage  stats.Sampler
}

func newPod(p *state.Pod) *Pod { return &Pod{Pod: p, op: state.NewLock(), initOp: state.NewLock()} }

func (p *Pod) namespaces() *runtimeapi.NamespaceOption {
	return p.Config().GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func (p *Pod) hostNetwork() bool { return p.namespaces().GetNetwork() == runtimeapi.NamespaceMode_NODE }
func (p *Pod) hostIPC() bool     { return p.namespaces().GetIpc() == runtimeapi.NamespaceMode_NODE }

func criPodState(phase state.PodPhase) runtimeapi.PodSandboxState {
	if phase == state.PodReady {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

// status returns the pod in the form of PodSandboxStatus.
func (p *Pod) status() *runtimeapi.PodSandboxStatus {
	rec, st, cfg := p.Record(), p.State(), p.Config()
	status := &runtimeapi.PodSandboxStatus{
		Id:             rec.ID,
		Metadata:       cfg.GetMetadata(),
		State:          criPodState(st.Phase),
		CreatedAt:      rec.Created.UnixNano(),
		Network:        &runtimeapi.PodSandboxNetworkStatus{},
		Labels:         maps.Clone(cfg.GetLabels()),
		Annotations:    maps.Clone(cfg.GetAnnotations()),
		RuntimeHandler: rec.Handler,
		Linux:          &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: p.namespaces()}},
	}
	if len(st.IPs) > 0 {
		status.Network.Ip = st.IPs[0]
		for _, ip := range st.IPs[1:] {
			status.Network.AdditionalIps = append(status.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
		}
	}
	return status
}

// listed returns the pod in the form of ListPodSandbox.
func (p *Pod) listed() *runtimeapi.PodSandbox {
	rec, cfg := p.Record(), p.Config()
	return &runtimeapi.PodSandbox{
		Id:             rec.ID,
		Metadata:       cfg.GetMetadata(),
		State:          criPodState(p.State().Phase),
		CreatedAt:      rec.Created.UnixNano(),
		Labels:         maps.Clone(cfg.GetLabels()),
		Annotations:    maps.Clone(cfg.GetAnnotations()),
		RuntimeHandler: rec.Handler,
	}
}
