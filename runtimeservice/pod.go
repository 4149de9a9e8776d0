package runtimeservice

import (
	"fmt"
	"maps"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/runtimeservice/stats"
)

// PodPhase is the stage of a pod's life.
type PodPhase string

// The phases of a pod, in order. RunPodSandbox has not answered yet for a pod that is Creating. If
// a start finds one after a crash, it completes the pod or tears it down.
const (
	PodCreating PodPhase = "creating"
	PodReady    PodPhase = "ready"
	PodNotReady PodPhase = "notready"
)

// PodRecord is what is known of a pod before its first side effect. It is written once and never
// changes, so a tear-down needs no other file.
type PodRecord struct {
	ID      string
	Config  stored[runtimeapi.PodSandboxConfig, *runtimeapi.PodSandboxConfig]
	Handler string // RuntimeClass handler, "" for the default
	Created time.Time
	// CgroupParent is the parent cgroup of the pod's containers, in the form of the cgroup driver.
	CgroupParent string
	// SELinux is the pod's process label, whose level its containers share; "" on a node without
	// SELinux.
	SELinux string `json:",omitempty"`
	// OwnCgroup is set if the service makes CgroupParent with the pod and removes it. A kubelet
	// manages the cgroups that it names.
	OwnCgroup bool
	// RestoredFrom is the directory of the checkpoint that the pod continues, "" for none.
	RestoredFrom string `json:",omitempty"`
}

// PodState is what changes while a pod lives.
type PodState struct {
	Phase  PodPhase
	BootID string // of the boot in which the phase was reached
	// IPs are the addresses of the pod's interface, the primary one first; none for a pod on the
	// host network.
	IPs []string
	// Restored is set once all containers of a pod with RestoredFrom are created. The start removes
	// such a pod if this is not set.
	Restored bool `json:",omitempty"`
	// InitPid is the PID of the init of the shared PID namespace, 0 before a container needs it.
	InitPid int
	// Overhead and Resources are the last resources that were set for the whole pod.
	Overhead, Resources stored[runtimeapi.LinuxContainerResources, *runtimeapi.LinuxContainerResources]
}

// Pod is a set of pinned namespaces, a cgroup and a record. Its only process of its own is the init
// of a shared PID namespace, if there is one.
type Pod struct {
	PodRecord
	dir string  // of the record and the state
	op  *opLock // held by RunPodSandbox's building, Stop and Remove
	// initOp is held while the init of the shared PID namespace is started. Taken after a
	// container's op, never together with the pod's.
	initOp *opLock
	usage  stats.Sampler

	mu    sync.Mutex // guards state; taken after op; the state file is the only I/O under it
	state PodState
}

func newPod(dir string, rec PodRecord) *Pod {
	return &Pod{PodRecord: rec, dir: dir, op: newOpLock(), initOp: newOpLock(), state: PodState{Phase: PodCreating}}
}

func (p *Pod) id() string       { return p.ID }
func (p *Pod) identity() string { return podIdentity(p.meta()) }

func (p *Pod) config() *runtimeapi.PodSandboxConfig { return p.Config.Msg }
func (p *Pod) meta() *runtimeapi.PodSandboxMetadata { return p.Config.Msg.GetMetadata() }
func (p *Pod) namespaces() *runtimeapi.NamespaceOption {
	return p.Config.Msg.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func (p *Pod) hostNetwork() bool { return p.namespaces().GetNetwork() == runtimeapi.NamespaceMode_NODE }
func (p *Pod) hostIPC() bool     { return p.namespaces().GetIpc() == runtimeapi.NamespaceMode_NODE }

// subject identifies the pod in operations.
func (p *Pod) subject() operations.Subject {
	return operations.Subject{Pod: p.ID, Name: p.meta().GetNamespace() + "/" + p.meta().GetName()}
}

// podIdentity returns the fields that a kubelet repeats when it retries RunPodSandbox.
func podIdentity(m *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("%s_%s_%s_%d", m.GetName(), m.GetNamespace(), m.GetUid(), m.GetAttempt())
}

func (p *Pod) snapshot() PodState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// update changes the state: f changes a copy, which is persisted and then replaces the state. If f
// or the write fails, the state does not change.
func (p *Pod) update(f func(*PodState) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := p.state
	if err := f(&next); err != nil {
		return err
	}
	if err := jsonfile.Write(filepath.Join(p.dir, stateFile), next); err != nil {
		return fmt.Errorf("write state of pod %s: %w", p.ID, err)
	}
	p.state = next
	return nil
}

// requireReady returns ErrFailedPrecondition unless the pod is ready.
func (p *Pod) requireReady(action string) error {
	if got := p.snapshot().Phase; got != PodReady {
		return fmt.Errorf("cannot %s pod %q (%s): %s: %w", action, p.meta().GetName(), p.ID, got, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (ph PodPhase) cri() runtimeapi.PodSandboxState {
	if ph == PodReady {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

// status returns the pod in the form of PodSandboxStatus.
func (p *Pod) status() *runtimeapi.PodSandboxStatus {
	st := p.snapshot()
	cfg := p.config()
	status := &runtimeapi.PodSandboxStatus{
		Id:             p.ID,
		Metadata:       cfg.GetMetadata(),
		State:          st.Phase.cri(),
		CreatedAt:      p.Created.UnixNano(),
		Network:        &runtimeapi.PodSandboxNetworkStatus{},
		Labels:         maps.Clone(cfg.GetLabels()),
		Annotations:    maps.Clone(cfg.GetAnnotations()),
		RuntimeHandler: p.Handler,
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
	cfg := p.config()
	return &runtimeapi.PodSandbox{
		Id:             p.ID,
		Metadata:       cfg.GetMetadata(),
		State:          p.snapshot().Phase.cri(),
		CreatedAt:      p.Created.UnixNano(),
		Labels:         maps.Clone(cfg.GetLabels()),
		Annotations:    maps.Clone(cfg.GetAnnotations()),
		RuntimeHandler: p.Handler,
	}
}
