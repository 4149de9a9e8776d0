package state

import (
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/internal/operations"
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
	Config  Message[runtimeapi.PodSandboxConfig, *runtimeapi.PodSandboxConfig]
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

// PodState is what changes while a pod lives. What its fields refer to is shared by all copies and
// must not be modified.
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
	Overhead, Resources Message[runtimeapi.LinuxContainerResources, *runtimeapi.LinuxContainerResources]
}

// Pod is the record and the state of a pod. It is safe for concurrent use.
type Pod struct {
	dir    string // of the record and the state
	record PodRecord

	mu    sync.Mutex // guards state; the state file is the only I/O under it
	state PodState
}

// RecordPod writes the record of a new pod to a new directory below root, named by the pod's ID.
// The pod is Creating. After an error there is no directory.
func RecordPod(root string, rec PodRecord) (*Pod, error) {
	dir, err := writeRecord(root, rec.ID, rec)
	if err != nil {
		return nil, fmt.Errorf("record pod: %w", err)
	}
	return newPod(dir, rec), nil
}

func newPod(dir string, rec PodRecord) *Pod {
	return &Pod{dir: dir, record: rec, state: PodState{Phase: PodCreating}}
}

// ID returns the pod's full ID.
func (p *Pod) ID() string { return p.record.ID }

// Identity returns the fields that a kubelet repeats when it retries RunPodSandbox.
func (p *Pod) Identity() string { return PodIdentity(p.Metadata()) }

// Dir returns the directory of the record and the state.
func (p *Pod) Dir() string { return p.dir }

// Record returns a copy of the record. The config in it must not be modified.
func (p *Pod) Record() PodRecord { return p.record }

// Config returns the config of the request, which must not be modified.
func (p *Pod) Config() *runtimeapi.PodSandboxConfig { return p.record.Config.Msg }

// Metadata returns the metadata of the config.
func (p *Pod) Metadata() *runtimeapi.PodSandboxMetadata { return p.Config().GetMetadata() }

// CgroupParent returns the parent cgroup of the pod's containers.
func (p *Pod) CgroupParent() string { return p.record.CgroupParent }

// Subject identifies the pod in operations.
func (p *Pod) Subject() operations.Subject {
	return operations.Subject{Pod: p.ID(), Name: p.Metadata().GetNamespace() + "/" + p.Metadata().GetName()}
}

// PodIdentity returns the identity of a pod with the metadata.
func PodIdentity(m *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("%s_%s_%s_%d", m.GetName(), m.GetNamespace(), m.GetUid(), m.GetAttempt())
}

// State returns a copy of the state.
func (p *Pod) State() PodState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// Update changes the state: f changes a copy, which is persisted and then replaces the state. If f
// or the write fails, the state does not change. f must not call methods of p.
func (p *Pod) Update(f func(*PodState) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := p.state
	if err := f(&next); err != nil {
		return err
	}
	if err := jsonfile.Write(filepath.Join(p.dir, StateFile), next); err != nil {
		return fmt.Errorf("write state of pod %s: %w", p.ID(), err)
	}
	p.state = next
	return nil
}

// RequireReady returns ErrFailedPrecondition unless the pod is ready.
func (p *Pod) RequireReady(action string) error {
	if got := p.State().Phase; got != PodReady {
		return fmt.Errorf("%s pod %q (%s): it is %s: %w", action, p.Metadata().GetName(), p.ID(), got, errdefs.ErrFailedPrecondition)
	}
	return nil
}
