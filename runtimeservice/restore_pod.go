package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/checkpoint"
	"github.com/micarun/mica/runtimeservice/spec"
	"github.com/micarun/mica/runtimeservice/state"
)

// RestorePod makes a pod and its containers from a checkpoint of CheckpointPod, which it does not
// change. The containers are created; each continues from the checkpoint when it is started. Their
// configs must describe the checkpointed processes. There are no options. After an error, including
// the end of ctx, nothing of the pod is left. Errors: ErrInvalidArgument, ErrNotFound (handler,
// checkpoint, image), ErrAlreadyExists (the pod's name), ErrFailedPrecondition (this node cannot
// restore, or the checkpoint does not fit), and those of the failed stage.
func (s *Service) RestorePod(ctx context.Context, req *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	cfg := req.GetConfig()
	name := cfg.GetMetadata().GetName()
	archives, err := s.checkRestorePod(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("restore pod %q: %w", name, err)
	}
	taken := func(p *Pod) error { // also by a call that is still under way
		return fmt.Errorf("restore pod: name %q is in use by pod %s: %w", p.Identity(), p.ID(), errdefs.ErrAlreadyExists)
	}
	var restored []*runtimeapi.RestoredContainer
	// The end of ctx ends the work, but RestorePod returns only when everything is removed.
	pod, err := s.pods.Create(context.WithoutCancel(ctx), state.Creation[*Pod]{
		Operation: runPod, Identity: state.PodIdentity(cfg.GetMetadata()), Limit: s.opts.CheckpointTimeout,
		Fits: taken, Reuse: taken,
		Build: func(work context.Context) (*Pod, error) {
			work, cancel := context.WithCancel(work)
			defer cancel()
			defer context.AfterFunc(ctx, cancel)()
			pod, containers, err := s.restorePod(work, req, archives)
			if err != nil && ctx.Err() != nil {
				err = fmt.Errorf("%w: %w", ctx.Err(), err)
			}
			restored = containers
			return pod, err
		},
	})
	if err != nil {
		return nil, fmt.Errorf("restore pod %q from %s: %w", name, req.GetCheckpointPath(), err)
	}
	return &runtimeapi.RestorePodResponse{PodSandboxId: pod.ID(), RestoredContainers: restored}, nil
}

// checkRestorePod checks the request as far as possible without reading archives, and returns the
// archive of each container by its name.
func (s *Service) checkRestorePod(ctx context.Context, req *runtimeapi.RestorePodRequest) (map[string]string, error) {
	cfg := req.GetConfig()
	if err := spec.ValidatePod(cfg); err != nil {
		return nil, err
	}
	if err := checkpoint.RefuseOptions(req.GetOptions()); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(req.GetCheckpointPath()) {
		return nil, fmt.Errorf("checkpoint path %q is not absolute: %w", req.GetCheckpointPath(), errdefs.ErrInvalidArgument)
	}
	by, err := s.checkpointer(ctx, req.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	if err := s.checkPodNamespaces(cfg, by.handler); err != nil {
		return nil, err
	}
	archives, err := checkpoint.ReadPod(req.GetCheckpointPath())
	if err != nil {
		return nil, err
	}
	return archives, matchContainers(cfg, req.GetContainerConfigs(), archives)
}

// matchContainers requires one config for each container of the checkpoint.
func matchContainers(pod *runtimeapi.PodSandboxConfig, configs []*runtimeapi.ContainerConfig, archives map[string]string) error {
	if len(configs) == 0 {
		return fmt.Errorf("no container configs: %w", errdefs.ErrInvalidArgument)
	}
	seen := map[string]bool{}
	for _, c := range configs {
		name := c.GetMetadata().GetName()
		switch {
		case name == "":
			return fmt.Errorf("a container config without a name: %w", errdefs.ErrInvalidArgument)
		case seen[name]:
			return fmt.Errorf("two configs for container %q: %w", name, errdefs.ErrInvalidArgument)
		case archives[name] == "":
			return fmt.Errorf("the checkpoint has no container %q: %w", name, errdefs.ErrInvalidArgument)
		}
		seen[name] = true
		if err := errors.Join(spec.ValidateContainer(c, pod), checkRestore(pod, c)); err != nil {
			return err
		}
	}
	for name := range archives {
		if !seen[name] {
			return fmt.Errorf("no config for container %q of the checkpoint: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// restorePod makes the pod and its containers. After an error it has removed them.
func (s *Service) restorePod(ctx context.Context, req *runtimeapi.RestorePodRequest, archives map[string]string) (*Pod, []*runtimeapi.RestoredContainer, error) {
	pod, err := s.createPod(ctx, podRequest{config: req.GetConfig(), handler: req.GetRuntimeHandler(), restoredFrom: req.GetCheckpointPath()})
	if err != nil {
		return nil, nil, err
	}
	containers, err := s.restoreInto(ctx, pod, req, archives)
	if err == nil {
		err = pod.Update(func(st *state.PodState) error { st.Restored = true; return nil })
	}
	if err == nil {
		return pod, containers, nil
	}
	s.undoRestore(ctx, pod)
	return nil, nil, err
}

// restoreInto creates the containers of a new pod, and fills its shared memory.
func (s *Service) restoreInto(ctx context.Context, pod *Pod, req *runtimeapi.RestorePodRequest, archives map[string]string) ([]*runtimeapi.RestoredContainer, error) {
	operations.Enter(ctx, "restore shared memory")
	dir := req.GetCheckpointPath()
	if err := s.addShm(ctx, pod.ID(), dir); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("restore-pod-made"); err != nil {
		return nil, err
	}
	operations.Enter(ctx, "create containers")
	var restored []*runtimeapi.RestoredContainer
	for _, cfg := range req.GetContainerConfigs() {
		name := cfg.GetMetadata().GetName()
		c, err := s.restoreContainer(ctx, pod, cfg, filepath.Join(dir, archives[name]))
		if err != nil {
			return nil, err
		}
		restored = append(restored, &runtimeapi.RestoredContainer{Name: name, ContainerId: c.ID()})
	}
	return restored, failpoint.Hit("restore-pod-created")
}

// restoreContainer creates one container from its archive if its config describes the checkpoint.
func (s *Service) restoreContainer(ctx context.Context, pod *Pod, cfg *runtimeapi.ContainerConfig, path string) (*Container, error) {
	name := cfg.GetMetadata().GetName()
	archive, err := checkpoint.Open(path)
	if err != nil {
		return nil, fmt.Errorf("restore container %q: %w", name, err)
	}
	o, err := s.originOf(ctx, pod, cfg, &source{Archive: archive, exact: true})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("restore container %q: %w", name, err), archive.Close())
	}
	defer o.close(ctx)
	img, err := s.images.Get(cfg.GetImage().GetImage())
	if err == nil && img.ID != o.img.ID {
		err = fmt.Errorf("the checkpoint does not fit: it is of image %s, and the config names %s: %w", o.img.ID, img.ID, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("restore container %q: %w", name, err)
	}
	ctx, op := s.operations.Begin(ctx, "create container", operations.Subject{Pod: pod.ID(), Name: pod.Subject().Name + "/" + name})
	c, err := s.createContainer(ctx, pod, cfg, o)
	op.End(err)
	return c, err
}

// addShm fills the shared memory of a new pod from a pod's checkpoint, which it does not change.
func (s *Service) addShm(ctx context.Context, podID, dir string) error {
	if !exists(filepath.Join(dir, checkpoint.ShmFile)) {
		return nil
	}
	shm := filepath.Join(s.paths.PodState(podID), shmDir)
	if !exists(shm) {
		return fmt.Errorf("restore shared memory: the pod shares the node's: %w", errdefs.ErrFailedPrecondition)
	}
	room, err := s.room()
	if err != nil {
		return err
	}
	in, err := checkpoint.OpenTar(ctx, dir, checkpoint.ShmFile)
	if err != nil {
		return fmt.Errorf("restore shared memory: %w", err)
	}
	err = errors.Join(overlay.UnpackTree(ctx, shm, overlay.UnpackArgs{Tar: in, Limit: room}), in.Close())
	if err != nil {
		return fmt.Errorf("restore shared memory: %w", err)
	}
	return nil
}

// undoRestore removes a partly restored pod, and publishes the events of the removal.
func (s *Service) undoRestore(ctx context.Context, pod *Pod) {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.TeardownTimeout)
	defer cancel()
	clean, op := s.operations.Begin(clean, "remove failed pod", pod.Subject())
	err := s.removePod(clean, pod)
	if op.End(err); err != nil {
		klog.FromContext(ctx).Error(err, "Tear-down of a partly restored pod failed, the next start tries again", "pod", pod.ID())
	}
}
