package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/imageservice"
	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/cgroup"
	"github.com/micarun/mica/runtimeservice/hooks"
	"github.com/micarun/mica/runtimeservice/keeper"
	"github.com/micarun/mica/runtimeservice/oci"
	"github.com/micarun/mica/runtimeservice/podns"
	"github.com/micarun/mica/runtimeservice/signals"
	"github.com/micarun/mica/runtimeservice/slots"
	"github.com/micarun/mica/runtimeservice/spec"
	"github.com/micarun/mica/runtimeservice/spec/lookup"
	"github.com/micarun/mica/runtimeservice/state"
)

const specFile = "config.json"

// CreateContainer makes a container in a ready pod, and leaves its process waiting for the start.
// If an earlier call for the same container is under way, or has made it and it is not started, the
// answer is that container.
//
// A container can continue a checkpoint: its image is then the absolute path of a checkpoint
// archive, or an image that is marked as a checkpoint. Its start resumes the checkpointed
// processes. Command, arguments, working directory and environment of its config are ignored.
//
// Errors: ErrInvalidArgument, ErrNotFound (pod, image, target, user, archive, base image of a
// checkpoint), ErrAlreadyExists, ErrFailedPrecondition (pod not ready, no checkpoints on this node,
// a checkpoint that does not fit), and those of the stage that failed.
func (s *Service) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	pod, err := s.pods.Get(req.GetPodSandboxId())
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	cfg := req.GetConfig()
	if err := spec.ValidateContainer(cfg, pod.Config()); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	if earlier, ok := s.containers.Named(state.ContainerIdentity(pod.ID(), cfg.GetMetadata())); ok {
		if err := s.recoveries.wait(ctx, earlier.ID()); err != nil {
			return nil, fmt.Errorf("create container: %w", err)
		}
	}
	c, err := s.containers.Create(ctx, state.Creation[*Container]{
		Operation: "create container", Identity: state.ContainerIdentity(pod.ID(), cfg.GetMetadata()), Limit: s.opts.ContainerTimeout,
		// A kubelet repeats the identity and puts a new path of the termination log into the config.
		Fits: func(*Container) error { return nil },
		Reuse: func(c *Container) error {
			if err := c.Require("create", state.Created); err != nil {
				return errors.Join(err, errdefs.ErrAlreadyExists)
			}
			return nil
		},
		Build: func(ctx context.Context) (*Container, error) { return s.createFrom(ctx, pod, cfg) },
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: c.ID()}, nil
}

// createFrom makes the container from the image or checkpoint that its config names.
func (s *Service) createFrom(ctx context.Context, pod *Pod, cfg *runtimeapi.ContainerConfig) (*Container, error) {
	from, err := s.openOrigin(ctx, pod, cfg)
	if err != nil {
		return nil, fmt.Errorf("create container %q in pod %s: %w", cfg.GetMetadata().GetName(), pod.ID(), err)
	}
	defer from.close(ctx)
	if err := spec.ValidateImage(from.img.Config.Config, cfg.GetMounts()); err != nil {
		return nil, fmt.Errorf("create container %q in pod %s of image %s: %w", cfg.GetMetadata().GetName(), pod.ID(), from.img.ID, err)
	}
	return s.createContainer(ctx, pod, cfg, from)
}

// createContainer makes the container. If a step fails, it removes the container again.
func (s *Service) createContainer(ctx context.Context, pod *Pod, cfg *runtimeapi.ContainerConfig, from origin) (*Container, error) {
	fail := func(err error) (*Container, error) {
		return nil, fmt.Errorf("create container %q in pod %s: %w", cfg.GetMetadata().GetName(), pod.ID(), err)
	}
	c, err := s.recordContainer(pod, cfg, from)
	if err != nil {
		return fail(err)
	}
	operations.About(ctx, s.subject(c))
	if err := c.op.Lock(ctx, "create container"); err != nil {
		return fail(err)
	}
	defer c.op.Unlock()
	if err := s.containers.Add(c); err != nil {
		_ = os.RemoveAll(c.Dir())
		return fail(err)
	}
	if err := s.buildContainer(ctx, pod, c, from); err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.TeardownTimeout)
		defer cancel()
		clean, op := s.operations.Begin(clean, "remove failed container", s.subject(c))
		downErr := s.eraseContainer(clean, c)
		if op.End(downErr); downErr != nil {
			klog.FromContext(ctx).Error(downErr, "Removing a container whose creation failed, failed too; the pod's removal tries again", "container", c.ID())
		}
		return fail(err)
	}
	s.plugins.PostCreateContainer(ctx, c.ID())
	return c, nil
}

// recordContainer writes the record of the container, before any other side effect.
func (s *Service) recordContainer(pod *Pod, cfg *runtimeapi.ContainerConfig, from origin) (*Container, error) {
	img := from.img
	if from.from != nil {
		cfg = restoredConfig(cfg, from.from)
	}
	rec := state.ContainerRecord{
		ID: newID(), PodID: pod.ID(), Handler: pod.Record().Handler, Created: time.Now(),
		ImageID: img.ID.String(), ImageRef: img.ID.String(),
		StopSignal:   signals.Stop(cfg.GetStopSignal(), img.Config.Config.StopSignal),
		CgroupParent: pod.CgroupParent(),
		Restored:     restorationOf(from.from),
	}
	rec.Config.Msg = cfg
	if len(img.Digests) > 0 {
		rec.ImageRef = img.Digests[0]
	}
	if dir, file := pod.Config().GetLogDirectory(), cfg.GetLogPath(); dir != "" && file != "" {
		rec.LogPath, rec.LogDir = filepath.Join(dir, file), dir
	}
	c, err := state.RecordContainer(s.paths.ContainerRecords(), rec)
	if err != nil {
		return nil, err
	}
	return newContainer(c), failpoint.Hit("container-recorded")
}

// buildContainer makes a created container from its record. After an error, the caller calls
// eraseContainer.
func (s *Service) buildContainer(ctx context.Context, pod *Pod, c *Container, from origin) error {
	// A stop ends the pod's readiness before it lists containers, and this container is in the
	// table: either the stop finds it, or it sees here that the pod is not ready.
	if err := pod.RequireReady("create container in"); err != nil {
		return err
	}
	operations.Enter(ctx, "make bundle")
	if err := s.makeBundle(pod, c); err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	labels, err := s.containerLabels(pod, c)
	if err != nil {
		return err
	}
	operations.Enter(ctx, "prepare root filesystem")
	rootfs, err := s.mountRootfs(ctx, rootfsArgs{pod: pod, c: c, img: from.img.Image, label: labels.mount})
	if err != nil {
		return fmt.Errorf("prepare root filesystem: %w", err)
	}
	if from.from != nil {
		operations.Enter(ctx, "unpack checkpoint")
		if err := s.unpackCheckpoint(ctx, c, from.from); err != nil {
			return fmt.Errorf("unpack checkpoint: %w", err)
		}
	}
	if err := failpoint.Hit("container-mounted"); err != nil {
		return err
	}
	ociSpec, resources, err := s.specifyContainer(ctx, specArgs{pod: pod, c: c, from: from, rootfs: rootfs, labels: labels})
	if err != nil {
		return err
	}
	pid, err := s.createProcess(ctx, pod, c, ociSpec)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("container-created"); err != nil {
		return err
	}
	c.publishing.Lock()
	defer c.publishing.Unlock()
	err = c.Update(func(st *state.ContainerState) error {
		st.BootID, st.Ready, st.Pid = s.bootID, true, pid
		st.Resources.Msg = resources
		st.User = state.UserOf(ociSpec.Process.User)
		return nil
	})
	if err == nil {
		s.emit(c.ID(), pod, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	}
	return err
}

// specifyContainer prepares what the specification refers to, makes the specification and writes it
// to the bundle. a has no user, namespaces and mounts yet. It also returns the resources in the
// specification.
func (s *Service) specifyContainer(ctx context.Context, a specArgs) (*specs.Spec, *runtimeapi.LinuxContainerResources, error) {
	operations.Enter(ctx, "resolve user")
	var err error
	if a.user, err = lookup.ResolveUser(ctx, a.rootfs, a.c.Config().GetLinux().GetSecurityContext(), a.from.img.Config.Config.User); err != nil {
		return nil, nil, fmt.Errorf("resolve user: %w", err)
	}
	operations.Enter(ctx, "join namespaces")
	if a.namespaces, err = s.containerNamespaces(ctx, a.pod, a.c); err != nil {
		return nil, nil, fmt.Errorf("join namespaces: %w", err)
	}
	operations.Enter(ctx, "prepare mounts")
	a.mounts, err = s.prepareMounts(ctx, mountArgs{pod: a.pod, c: a.c, from: a.from, rootfs: a.rootfs, label: a.labels.mount})
	if err != nil {
		return nil, nil, fmt.Errorf("prepare mounts: %w", err)
	}
	operations.Enter(ctx, "make specification")
	ociSpec, resources, err := s.containerSpec(ctx, a)
	if err != nil {
		return nil, nil, fmt.Errorf("make specification: %w", err)
	}
	// The bundle is removed when the container exits; the copy beside the record stays for reading.
	for _, dir := range []string{s.paths.Bundle(a.c.ID()), a.c.Dir()} {
		if err := jsonfile.Write(filepath.Join(dir, specFile), ociSpec); err != nil {
			return nil, nil, fmt.Errorf("write specification: %w", err)
		}
	}
	return ociSpec, resources, nil
}

// rootfsArgs are the arguments of mountRootfs.
type rootfsArgs struct {
	pod   *Pod
	c     *Container
	img   imageservice.Image
	label string // SELinux label of every file
}

// mountRootfs makes the writable layer and mounts the root filesystem.
func (s *Service) mountRootfs(ctx context.Context, a rootfsArgs) (string, error) {
	if _, err := s.layers.Create(ctx, overlay.CreateArgs{ID: a.c.ID(), Parent: a.img.Top()}); err != nil {
		return "", err
	}
	// Volatile: a container does not survive a reboot, so nothing reads a layer that a power cut
	// has damaged.
	rootfs, err := s.layers.Mount(ctx, overlay.MountArgs{ID: a.c.ID(), Volatile: true, Label: a.label, Owners: s.owners(a.pod)})
	if err != nil || a.pod.userNamespace() == nil {
		return rootfs, err
	}
	return s.exposeRootfs(a.c, rootfs)
}

// createProcess has the keeper create the container from its bundle, and returns its PID. A
// container that continues a checkpoint has no process before its start; its PID is 0.
func (s *Service) createProcess(ctx context.Context, p *Pod, c *Container, ociSpec *specs.Spec) (int, error) {
	if c.Record().Restored != nil {
		if err := continueLog(c); err != nil {
			return 0, fmt.Errorf("restore log: %w", err)
		}
		return 0, nil
	}
	h, err := s.handler(c.Record().Handler)
	if err != nil {
		return 0, err
	}
	if c.Record().LogPath != "" {
		if err := c.log().MakeDir(); err != nil {
			return 0, fmt.Errorf("make log directory: %w", err)
		}
	}
	done, err := s.slots.Acquire(ctx, slots.Create)
	if err != nil {
		return 0, err
	}
	defer done()
	operations.Enter(ctx, "create by OCI runtime")
	if err := s.refuseFrozen(c); err != nil {
		return 0, fmt.Errorf("create by OCI runtime: %w", err)
	}
	args := s.createArgs(p, c, h)
	if ociSpec.Hooks == nil || len(ociSpec.Hooks.Poststart) == 0 { // which the OCI runtime's start may run
		args.StartPipe = oci.StartPipe(h.features.oci)
	}
	args.RemoveState = s.endsPlain(h, ociSpec)
	pid, err := s.keeper.Create(ctx, args)
	if err != nil {
		return 0, fmt.Errorf("create by OCI runtime: %w", s.nameFrozen(c, err))
	}
	return pid, nil
}

// endsPlain reports whether the OCI runtime's delete of the container has nothing to do but to remove
// the cgroup and its own state.
func (s *Service) endsPlain(h handler, ociSpec *specs.Spec) bool {
	hooked := ociSpec.Hooks != nil && len(ociSpec.Hooks.Poststop) > 0
	unit := s.cgroups.Driver() == cgroup.Systemd // which delete ends
	return oci.PlainState(h.features.oci) && !hooked && !unit && ociSpec.Linux.IntelRdt == nil
}

// createArgs returns the arguments of the keeper for a container.
func (s *Service) createArgs(p *Pod, c *Container, h handler) keeper.CreateArgs {
	cfg := c.Config()
	uid, gid := p.root()
	return keeper.CreateArgs{
		ID: c.ID(), Runtime: h.Args(), Bundle: s.paths.Bundle(c.ID()), LogPath: c.Record().LogPath, LogDir: c.Record().LogDir,
		Terminal: cfg.GetTty(), Stdin: cfg.GetStdin(), StdinOnce: cfg.GetStdinOnce(),
		MemoryCgroup: s.cgroups.MemoryDir(s.containerCgroup(c)),
		Timeout:      s.opts.ContainerTimeout,
		UID:          uid, GID: gid,
	}
}

// specArgs are the arguments of containerSpec.
type specArgs struct {
	pod    *Pod
	c      *Container
	from   origin
	rootfs string
	labels labels

	user       spec.User
	namespaces spec.Namespaces
	mounts     preparedMounts
}

// containerSpec looks up the remaining inputs of spec.Container, and generates the specification. It
// also returns the resources in it.
func (s *Service) containerSpec(ctx context.Context, a specArgs) (*specs.Spec, *runtimeapi.LinuxContainerResources, error) {
	cfg, podCfg := a.c.Config(), a.pod.Config()
	if a.from.from != nil {
		cfg = a.from.from.processConfig(cfg)
	}
	sc := cfg.GetLinux().GetSecurityContext()
	h, err := s.handler(a.c.Record().Handler)
	if err != nil {
		return nil, nil, err
	}
	in := spec.ContainerInput{
		ID: a.c.ID(), PodID: a.pod.ID(), Config: cfg, Pod: podCfg, Image: a.from.img.Config.Config, Host: s.host,
		Features: &h.features.oci, RootfsPath: a.rootfs, User: a.user,
		CgroupsPath:  s.cgroups.ContainerPath(a.c.CgroupParent(), a.c.ID()),
		ProcessLabel: a.labels.process, MountLabel: a.labels.mount,
		Namespaces:   a.namespaces,
		MountSources: a.mounts.sources, MappedSources: true, Submounts: a.mounts.submounts, Mounts: a.mounts.own,
		Rlimits: s.ulimits,
	}
	if a.from.from != nil {
		in.Edits = append(in.Edits, func(ociSpec *specs.Spec) error { return s.restoreSpec(a.c, a.from.from, ociSpec) })
	}
	if in.Devices, in.DeviceRules, err = lookup.ResolveDevices(cfg.GetDevices()); err != nil {
		return nil, nil, fmt.Errorf("resolve devices: %w", err)
	}
	if sc.GetPrivileged() { // listed now, because devices such as loop devices come and go
		if in.Host.Devices, err = lookup.HostDevices(); err != nil {
			return nil, nil, fmt.Errorf("list devices: %w", err)
		}
	}
	if in.SeccompProfile, err = lookup.ReadSeccomp(sc); err != nil {
		return nil, nil, fmt.Errorf("read seccomp profile: %w", err)
	}
	if err := lookup.EnsureAppArmor(sc, s.host); err != nil {
		return nil, nil, err
	}
	in.CDI = s.injectCDI
	var resources *runtimeapi.LinuxContainerResources
	in.Edits = append(in.Edits, func(ociSpec *specs.Spec) error {
		return s.hooks.Inject(ociSpec, hookable(a.pod, a.c))
	}, func(ociSpec *specs.Spec) error {
		var err error
		resources, err = s.adjustByPlugins(ctx, a.c, ociSpec)
		return err
	})
	ociSpec, err := spec.Container(in)
	if err != nil {
		return nil, nil, fmt.Errorf("generate OCI spec: %w", err)
	}
	return ociSpec, resources, nil
}

// hookable returns the data that hook files select containers by. If pod and container have the
// same annotation, the pod's wins.
func hookable(p *Pod, c *Container) hooks.Container {
	annotations := map[string]string{}
	maps.Copy(annotations, c.Config().GetAnnotations())
	maps.Copy(annotations, p.Config().GetAnnotations())
	return hooks.Container{
		Annotations: annotations,
		BindMounts:  slices.ContainsFunc(c.Config().GetMounts(), func(m *runtimeapi.Mount) bool { return m.GetHostPath() != "" }),
	}
}

// containerNamespaces returns the namespaces that the container joins.
func (s *Service) containerNamespaces(ctx context.Context, p *Pod, c *Container) (spec.Namespaces, error) {
	dir := s.paths.PodState(p.ID())
	ns := spec.Namespaces{User: s.userNamespace(p), Net: filepath.Join(dir, podns.Net), UTS: filepath.Join(dir, podns.UTS), IPC: filepath.Join(dir, podns.IPC)}
	if p.hostNetwork() {
		ns.Net, ns.UTS = spec.HostNamespace, spec.HostNamespace
	}
	if p.hostIPC() {
		ns.IPC = spec.HostNamespace
	}
	var err error
	opts := c.Config().GetLinux().GetSecurityContext().GetNamespaceOptions()
	switch opts.GetPid() {
	case runtimeapi.NamespaceMode_NODE:
		ns.PID = spec.HostNamespace
	case runtimeapi.NamespaceMode_POD:
		ns.PID, err = s.sharedPIDNamespace(ctx, p)
	case runtimeapi.NamespaceMode_TARGET:
		ns.PID, err = s.targetPIDNamespace(p, opts.GetTargetId())
	case runtimeapi.NamespaceMode_CONTAINER: // a namespace of its own
	}
	return ns, err
}

// targetPIDNamespace returns the PID namespace of another container of the pod.
func (s *Service) targetPIDNamespace(p *Pod, targetID string) (string, error) {
	target, err := s.containers.Get(targetID)
	if err != nil {
		return "", fmt.Errorf("join the PID namespace of the target: %w", err)
	}
	if target.PodID() != p.ID() {
		return "", fmt.Errorf("join the PID namespace of container %s: it is in another pod: %w", target.ID(), errdefs.ErrInvalidArgument)
	}
	if err := target.Require("join the PID namespace of", state.Running); err != nil {
		return "", err
	}
	return fmt.Sprintf("/proc/%d/ns/pid", target.State().Pid), nil
}

// sharedPIDNamespace returns the PID namespace that containers of the pod share. It starts the init
// for the first container that needs it, so a pod without such containers has no process of its
// own.
func (s *Service) sharedPIDNamespace(ctx context.Context, p *Pod) (string, error) {
	if err := p.initOp.Lock(ctx, "start init of pod "+p.ID()); err != nil {
		return "", err
	}
	defer p.initOp.Unlock()
	dir := s.paths.PodState(p.ID())
	pin := filepath.Join(dir, podns.PID)
	if p.State().InitPid != 0 {
		return pin, nil
	}
	if err := os.WriteFile(pin, nil, 0o444); err != nil {
		return "", fmt.Errorf("make the pin of the shared PID namespace: %w", err)
	}
	procs, err := s.cgroups.MakeInit(p.CgroupParent())
	if err != nil {
		return "", err
	}
	args := keeper.InitArgs{ID: p.ID(), Binary: s.opts.InitBinary, UserNS: s.userNamespace(p), PIDNSPin: pin, CgroupProcs: procs}
	if !p.hostNetwork() {
		args.NetNS, args.UTSNS = filepath.Join(dir, podns.Net), filepath.Join(dir, podns.UTS)
	}
	if !p.hostIPC() {
		args.IPCNS = filepath.Join(dir, podns.IPC)
	}
	pid, err := s.keeper.StartInit(ctx, args)
	if err != nil {
		return "", fmt.Errorf("start init of the shared PID namespace: %w", err)
	}
	return pin, p.Update(func(st *state.PodState) error { st.InitPid = pid; return nil })
}
