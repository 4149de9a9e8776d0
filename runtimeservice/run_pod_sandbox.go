package runtimeservice

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/network"
	"github.com/micarun/mica/runtimeservice/podns"
	"github.com/micarun/mica/runtimeservice/slots"
	"github.com/micarun/mica/runtimeservice/spec"
	"github.com/micarun/mica/runtimeservice/spec/lookup"
	"github.com/micarun/mica/runtimeservice/state"
)

// runPod is the name of the operation that makes a pod.
const runPod = "run pod"

// RunPodSandbox makes a pod: its namespaces, its network and its cgroup. If an earlier call for the
// same pod is under way, or has made it from the same config, the answer is that pod. Errors:
// ErrInvalidArgument, ErrAlreadyExists, ErrNotFound (handler), ErrFailedPrecondition (user
// namespaces not supported), and those of the stage that failed.
func (s *Service) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	cfg := req.GetConfig()
	if err := spec.ValidatePod(cfg); err != nil {
		return nil, fmt.Errorf("run pod: %w", err)
	}
	h, err := s.handler(req.GetRuntimeHandler())
	if err != nil {
		return nil, fmt.Errorf("run pod: %w", err)
	}
	if err := s.checkPodNamespaces(cfg, h); err != nil {
		return nil, fmt.Errorf("run pod: %w", err)
	}
	if earlier, ok := s.pods.Named(state.PodIdentity(cfg.GetMetadata())); ok {
		if err := s.recoveries.wait(ctx, earlier.ID()); err != nil {
			return nil, fmt.Errorf("run pod: %w", err)
		}
	}
	pod, err := s.pods.Create(ctx, state.Creation[*Pod]{
		Operation: runPod, Identity: state.PodIdentity(cfg.GetMetadata()), Limit: s.opts.PodTimeout,
		Fits: func(p *Pod) error {
			if !proto.Equal(p.Config(), cfg) || p.Record().Handler != req.GetRuntimeHandler() {
				return fmt.Errorf("run pod: name %q is in use by pod %s with another config: %w", p.Identity(), p.ID(), errdefs.ErrAlreadyExists)
			}
			return nil
		},
		Reuse: func(p *Pod) error { return p.RequireReady("run") },
		Build: func(ctx context.Context) (*Pod, error) {
			return s.createPod(ctx, podRequest{config: cfg, handler: req.GetRuntimeHandler()})
		},
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: pod.ID()}, nil
}

// checkPodNamespaces refuses user namespaces and sysctls that the pod cannot have.
func (s *Service) checkPodNamespaces(cfg *runtimeapi.PodSandboxConfig, h handler) error {
	if spec.PodUserNamespace(cfg) != nil {
		if err := s.checkUserNamespaces(h); err != nil {
			return fmt.Errorf("pod %q: %w", cfg.GetMetadata().GetName(), err)
		}
	}
	return podns.CheckSysctls(s.podNamespaces(cfg, ""))
}

// podRequest are the arguments of createPod.
type podRequest struct {
	config       *runtimeapi.PodSandboxConfig
	handler      string
	restoredFrom string // directory of a checkpoint, "" for none
}

// createPod makes the pod. If a step fails, it removes the pod again.
func (s *Service) createPod(ctx context.Context, r podRequest) (*Pod, error) {
	cfg := r.config
	pod, err := s.recordPod(r)
	if err != nil {
		return nil, err
	}
	operations.About(ctx, pod.Subject())
	if err := pod.op.Lock(ctx, "run pod"); err != nil {
		return nil, err
	}
	defer pod.op.Unlock()
	if err := s.pods.Add(pod); err != nil {
		lookup.ReleaseSELinux(pod.Record().SELinux)
		_ = os.RemoveAll(pod.Dir())
		return nil, err
	}
	if err := s.buildPod(ctx, pod); err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.TeardownTimeout)
		defer cancel()
		clean, op := s.operations.Begin(clean, "remove failed pod", pod.Subject())
		downErr := s.erasePod(clean, pod)
		if op.End(downErr); downErr != nil {
			klog.FromContext(ctx).Error(downErr, "Removing a pod whose creation failed, failed too; the next start tries again", "pod", pod.ID())
		}
		return nil, fmt.Errorf("run pod %q: %w", cfg.GetMetadata().GetName(), err)
	}
	s.emit(pod.ID(), pod, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	s.emit(pod.ID(), pod, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return pod, nil
}

// recordPod writes the record of the pod, before any other side effect.
func (s *Service) recordPod(r podRequest) (*Pod, error) {
	cfg := r.config
	rec := state.PodRecord{ID: newID(), Handler: r.handler, Created: time.Now(), RestoredFrom: r.restoredFrom}
	rec.Config.Msg = cfg
	criParent := cfg.GetLinux().GetCgroupParent()
	parent, err := s.cgroups.PodParent(criParent, rec.ID)
	if err != nil {
		return nil, fmt.Errorf("run pod: %w", err)
	}
	rec.CgroupParent, rec.OwnCgroup = parent, criParent == ""
	if rec.SELinux, err = podLabel(cfg); err != nil {
		return nil, fmt.Errorf("run pod: %w", err)
	}
	pod, err := state.RecordPod(s.paths.PodRecords(), rec)
	if err != nil {
		lookup.ReleaseSELinux(rec.SELinux)
		return nil, err
	}
	return newPod(pod), failpoint.Hit("pod-recorded")
}

// buildPod makes a ready pod from its record. After an error, the caller calls erasePod.
func (s *Service) buildPod(ctx context.Context, p *Pod) error {
	operations.Enter(ctx, "make cgroup")
	if err := s.makePodCgroup(ctx, p); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	if err := os.Mkdir(s.paths.PodState(p.ID()), privateMode); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	ips, err := s.isolatePod(ctx, p)
	if err != nil {
		return err
	}
	operations.Enter(ctx, "write pod files")
	if err := s.writePodFiles(p, ips); err != nil {
		return fmt.Errorf("write pod files: %w", err)
	}
	if err := failpoint.Hit("pod-built"); err != nil {
		return err
	}
	linux := p.Config().GetLinux()
	ready := state.PodState{Phase: state.PodReady, BootID: s.bootID, IPs: ips}
	ready.Overhead.Msg, ready.Resources.Msg = linux.GetOverhead(), linux.GetResources()
	operations.Enter(ctx, "notify plugins")
	if err := s.plugins.RunPod(ctx, s.pluginPod(p, ready)); err != nil {
		return err
	}
	return p.Update(func(st *state.PodState) error { *st = ready; return nil })
}

// isolatePod makes the pod's namespaces and network, and returns its addresses.
func (s *Service) isolatePod(ctx context.Context, p *Pod) ([]string, error) {
	done, err := s.slots.Acquire(ctx, slots.Pod)
	if err != nil {
		return nil, err
	}
	defer done()
	operations.Enter(ctx, "make namespaces")
	if err := podns.Pin(ctx, s.podNamespaces(p.Config(), s.paths.PodState(p.ID()))); err != nil {
		return nil, fmt.Errorf("make namespaces: %w", err)
	}
	if err := failpoint.Hit("pod-pinned"); err != nil {
		return nil, err
	}
	operations.Enter(ctx, "set up network")
	ips, err := s.attachPod(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("set up network: %w", err)
	}
	if len(p.Config().GetLinux().GetSysctls()) == 0 {
		return ips, nil
	}
	operations.Enter(ctx, "set sysctls of interfaces")
	if err := podns.SetInterfaceSysctls(s.podNamespaces(p.Config(), s.paths.PodState(p.ID()))); err != nil {
		return nil, fmt.Errorf("set sysctls of interfaces: %w", err)
	}
	return ips, nil
}

func (s *Service) podNamespaces(cfg *runtimeapi.PodSandboxConfig, dir string) podns.Args {
	ns := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
	ownNet := ns.GetNetwork() != runtimeapi.NamespaceMode_NODE
	return podns.Args{
		Dir:  dir,
		User: s.newUserNamespace(spec.PodUserNamespace(cfg)),
		Net:  ownNet,
		// A pod on the host network has the host's name.
		UTS:      ownNet,
		IPC:      ns.GetIpc() != runtimeapi.NamespaceMode_NODE,
		Hostname: cfg.GetHostname(),
		Sysctls:  cfg.GetLinux().GetSysctls(),
	}
}

func (s *Service) attachPod(ctx context.Context, p *Pod) ([]string, error) {
	if p.hostNetwork() {
		return nil, nil
	}
	result, err := s.network.Add(ctx, s.networkPod(p))
	if err != nil {
		return nil, err
	}
	ips := make([]string, len(result.IPs))
	for i, ip := range result.IPs {
		ips[i] = ip.String()
	}
	return ips, nil
}

func (s *Service) networkPod(p *Pod) network.Pod {
	cfg := p.Config()
	pod := network.Pod{
		ID:           p.ID(),
		Name:         p.Metadata().GetName(),
		Namespace:    p.Metadata().GetNamespace(),
		UID:          p.Metadata().GetUid(),
		NetNS:        filepath.Join(s.paths.PodState(p.ID()), podns.Net),
		Annotations:  cfg.GetAnnotations(),
		CgroupParent: p.CgroupParent(),
		DNS: network.DNS{
			Servers: cfg.GetDnsConfig().GetServers(), Searches: cfg.GetDnsConfig().GetSearches(), Options: cfg.GetDnsConfig().GetOptions(),
		},
	}
	for _, m := range cfg.GetPortMappings() {
		pod.PortMappings = append(pod.PortMappings, network.PortMapping{
			HostPort: m.GetHostPort(), ContainerPort: m.GetContainerPort(), Protocol: m.GetProtocol().String(), HostIP: m.GetHostIp(),
		})
	}
	return pod
}
