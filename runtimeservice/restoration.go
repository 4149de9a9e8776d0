package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/imageservice"
	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/checkpoint"
	"github.com/micarun/mica/runtimeservice/keeper"
	"github.com/micarun/mica/runtimeservice/oci"
)

const (
	// checkpointDir, below a container's directory, holds the checkpoint until its processes are
	// restored.
	checkpointDir = "checkpoint"
	// criuConfigFile, in a bundle, has the options of CRIU.
	criuConfigFile = "criu.conf"
)

// source is a checkpoint that a container is to continue.
type source struct {
	*checkpoint.Archive
	checkpoint.Description
	// exact says that the container's config describes the checkpointed process
	// and must be right about it. Otherwise it says nothing of the process.
	exact bool
}

// origin is what a container is made of: an image, and nil or a checkpoint of a
// container of that image.
type origin struct {
	img  imageservice.Detailed
	from *source
}

// close lets go of the checkpoint.
func (o origin) close(ctx context.Context) {
	if o.from == nil {
		return
	}
	if err := o.from.Close(); err != nil {
		klog.FromContext(ctx).Error(err, "Checkpoint is not closed", "source", o.from.Name())
	}
}

// openOrigin finds what the config wants the container to be made of. A
// checkpoint is closed by the caller.
func (s *Service) openOrigin(ctx context.Context, pod *Pod, cfg *runtimeapi.ContainerConfig) (origin, error) {
	name := cfg.GetImage().GetImage()
	open := checkpoint.Open
	if !filepath.IsAbs(name) {
		img, err := s.images.Detail(name)
		if err != nil || !img.Checkpoint {
			return origin{img: img}, err
		}
		open = func(string) (*checkpoint.Archive, error) { return s.openImage(img.Image) }
	}
	archive, err := open(name)
	if err != nil {
		return origin{}, err
	}
	o, err := s.originOf(ctx, pod, cfg, &source{Archive: archive})
	if err != nil {
		return origin{}, errors.Join(err, archive.Close())
	}
	return o, nil
}

// openImage opens the checkpoint that an image consists of, and keeps it until
// it is closed.
func (s *Service) openImage(img imageservice.Image) (*checkpoint.Archive, error) {
	name := img.ID.String()
	if refs := append(img.Tags, img.Digests...); len(refs) > 0 {
		name = refs[0]
	}
	if !s.opts.RestoreImages {
		return nil, fmt.Errorf("image %s is a checkpoint, and this node restores none of images (pods.restore_images): %w", name, errdefs.ErrFailedPrecondition)
	}
	release, err := s.layers.Hold(img.Top())
	if err != nil {
		return nil, fmt.Errorf("open checkpoint image %s: %w", name, err)
	}
	begin := func(ctx context.Context) (io.ReadCloser, error) { return s.layers.TarStream(ctx, img.Top()) }
	return checkpoint.OpenStream(name, begin, release), nil
}

// originOf reads what the checkpoint says of itself and finds its image.
func (s *Service) originOf(ctx context.Context, pod *Pod, cfg *runtimeapi.ContainerConfig, from *source) (origin, error) {
	by, err := s.checkpointer(ctx, pod.Handler)
	if err == nil {
		err = checkRestore(pod.config(), cfg)
	}
	if err == nil {
		from.Description, err = from.Describe(ctx)
	}
	if err == nil {
		err = checkpoint.CheckRuntime(from.Config.OCIRuntime, by.Handler().Type, by.Handler().Path)
	}
	if err != nil {
		return origin{}, err
	}
	img, err := s.baseImage(from.Config)
	return origin{img: img, from: from}, err
}

// baseImage finds the image of a checkpointed container by whatever the archive
// says of it, the most exact first.
func (s *Service) baseImage(c checkpoint.Config) (imageservice.Detailed, error) {
	for _, name := range []string{c.RootfsImageRef, c.RootfsImageName, c.RootfsImage} {
		if name == "" || filepath.IsAbs(name) {
			continue
		}
		img, err := s.images.Detail(name)
		if err == nil {
			return img, nil
		}
		if !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
			return imageservice.Detailed{}, err
		}
	}
	return imageservice.Detailed{}, fmt.Errorf("find the image of the checkpointed container: neither %q nor %q is here, pull it first: %w",
		c.RootfsImageRef, c.RootfsImageName, errdefs.ErrNotFound)
}

// restoredConfig is the config as the record has it: of the image that the
// container stands on, whatever it was asked for by.
func restoredConfig(cfg *runtimeapi.ContainerConfig, from *source) *runtimeapi.ContainerConfig {
	cfg = proto.CloneOf(cfg)
	if from.Config.RootfsImageName == "" || from.exact {
		return cfg
	}
	// What the user named is the checkpoint.
	cfg.Image.Image, cfg.Image.UserSpecifiedImage = from.Config.RootfsImageName, ""
	return cfg
}

// processConfig is the config with the process of the checkpoint, from which a
// specification is made. It has its own where it must be right.
func (f *source) processConfig(cfg *runtimeapi.ContainerConfig) *runtimeapi.ContainerConfig {
	if f.exact {
		return cfg
	}
	p := f.Spec.Process
	cfg = proto.CloneOf(cfg)
	cfg.Command, cfg.Args, cfg.WorkingDir, cfg.Envs = p.Args, nil, p.Cwd, nil
	for _, e := range p.Env {
		if key, value, ok := strings.Cut(e, "="); ok && key != "" {
			cfg.Envs = append(cfg.Envs, &runtimeapi.KeyValue{Key: key, Value: []byte(value)})
		}
	}
	return cfg
}

// unpackCheckpoint brings the files of the checkpoint to where they belong: the
// images of CRIU into the container's own directory, the rest over the mounted
// root filesystem, the volumes and the pod's shared memory.
func (s *Service) unpackCheckpoint(ctx context.Context, c *Container, from *source) error {
	dir := filepath.Join(c.dir, checkpointDir)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	room, err := s.room()
	if err != nil {
		return err
	}
	if err := from.Unpack(ctx, dir, room); err != nil {
		return err
	}
	deleted, err := checkpoint.ReadDeleted(dir)
	if err != nil {
		return err
	}
	err = s.unpackTar(ctx, tarArgs{dir: dir, name: checkpoint.RootfsDiffFile, into: func(a overlay.UnpackArgs) error {
		a.Deleted = deleted
		return s.layers.ApplyChanges(ctx, c.ID, a)
	}})
	if err != nil {
		return fmt.Errorf("restore root filesystem: %w", err)
	}
	if err := s.unpackShm(ctx, c.PodID, dir); err != nil {
		return err
	}
	return failpoint.Hit("restore-unpacked")
}

// tarArgs name a tar of an unpacked archive, and what takes its content.
type tarArgs struct {
	dir, name string
	into      func(overlay.UnpackArgs) error
}

// unpackTar hands on the content of one tar and removes it.
func (s *Service) unpackTar(ctx context.Context, a tarArgs) error {
	room, err := s.room()
	if err != nil {
		return err
	}
	in, err := checkpoint.OpenTar(ctx, a.dir, a.name)
	if err != nil {
		return err
	}
	err = errors.Join(a.into(overlay.UnpackArgs{Tar: in, Limit: room}), in.Close())
	if err != nil {
		return fmt.Errorf("unpack %s: %w", a.name, err)
	}
	return removeFiles([]string{filepath.Join(a.dir, a.name)})
}

// unpackShm adds what an unpacked archive in dir has of shared memory to the
// pod's. What is there already belongs to other containers and stays.
func (s *Service) unpackShm(ctx context.Context, podID, dir string) error {
	if !exists(filepath.Join(dir, checkpoint.ShmFile)) {
		return nil
	}
	shm := filepath.Join(s.podStateDir(podID), shmDir)
	err := s.unpackTar(ctx, tarArgs{dir: dir, name: checkpoint.ShmFile, into: func(a overlay.UnpackArgs) error {
		a.Keep = true
		return overlay.UnpackTree(ctx, shm, a)
	}})
	if err != nil {
		return fmt.Errorf("restore shared memory of pod %s: %w", podID, err)
	}
	return nil
}

// unpackVolumes replaces what the volumes of the image hold by what they held.
func (s *Service) unpackVolumes(ctx context.Context, c *Container) error {
	volumes, err := os.ReadDir(filepath.Join(c.dir, volumesDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	from := filepath.Join(c.dir, checkpointDir)
	for _, v := range volumes {
		name := filepath.Join(checkpoint.VolumesDir, v.Name()+".tar")
		if !exists(filepath.Join(from, name)) {
			continue
		}
		dir := filepath.Join(c.dir, volumesDir, v.Name())
		if err := emptyDir(dir); err != nil {
			return err
		}
		err := s.unpackTar(ctx, tarArgs{dir: from, name: name, into: func(a overlay.UnpackArgs) error {
			return overlay.UnpackTree(ctx, dir, a)
		}})
		if err != nil {
			return fmt.Errorf("restore volume %s: %w", v.Name(), err)
		}
	}
	return nil
}

// emptyDir removes what is in a directory and keeps the directory.
func emptyDir(dir string) error {
	names, err := os.ReadDir(dir)
	for _, n := range names {
		err = errors.Join(err, overlay.RemoveTree(filepath.Join(dir, n.Name())))
	}
	return err
}

// restoreSpec changes the specification to the checkpointed process, if that process fits.
func (s *Service) restoreSpec(c *Container, from *source, now *specs.Spec) error {
	streams, err := checkpoint.ReadStreams(filepath.Join(c.dir, checkpointDir))
	if err != nil {
		return err
	}
	err = checkpoint.CheckFit(checkpoint.Fit{Was: &from.Spec, Now: now, Exact: from.exact, Config: c.config(), Streams: streams})
	if err != nil {
		return err
	}
	was := from.Spec.Process
	now.Process.Args, now.Process.Env, now.Process.Cwd, now.Process.User = was.Args, was.Env, was.Cwd, was.User
	if now.Annotations == nil {
		now.Annotations = map[string]string{}
	}
	h, err := s.handler(c.Handler)
	if err != nil {
		return err
	}
	conf := filepath.Join(s.bundle(c.ID), criuConfigFile)
	now.Annotations[checkpoint.CriuConfigAnnotation] = conf
	return os.WriteFile(conf, []byte(checkpoint.CriuOptions(h.Handler().Type, h.Handler().Root)), 0o600)
}

// continueLog begins the container's log with that of the checkpoint, unless it
// has one.
func continueLog(c *Container) error {
	was := filepath.Join(c.dir, checkpointDir, checkpoint.LogFile)
	if c.LogPath == "" || !exists(was) {
		return nil
	}
	if err := c.log().MakeDir(); err != nil {
		return err
	}
	to, err := c.log().Create()
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	from, err := os.Open(was)
	if err == nil {
		_, err = io.Copy(to, from)
		_ = from.Close()
	}
	return errors.Join(err, to.Close())
}

// alreadyRestoring is how long to wait before the keeper is asked again for a
// container that it is just restoring for a daemon that died.
const alreadyRestoring = 50 * time.Millisecond

// restoreProcesses has the keeper restore the processes of a container that
// was made from a checkpoint, and removes the checkpoint.
func (s *Service) restoreProcesses(ctx context.Context, p *Pod, c *Container) (int, error) {
	by, err := s.checkpointer(ctx, c.Handler)
	if err != nil {
		return 0, err
	}
	dir := filepath.Join(c.dir, checkpointDir)
	args := keeper.RestoreArgs{
		CreateArgs: s.createArgs(p, c, by.handler),
		Images:     filepath.Join(dir, checkpoint.ImagesDir), Work: dir, Flags: oci.CheckpointFlags(),
	}
	args.Env = by.criu.Environment()
	pid, err := s.keeper.Restore(ctx, args)
	for errdefs.IsAlreadyExists(err) {
		st, gerr := s.keeper.Get(ctx, c.ID)
		if gerr == nil {
			pid, err = st.Pid, nil
			break
		}
		select {
		case <-ctx.Done():
			return 0, err
		case <-time.After(alreadyRestoring):
			pid, err = s.keeper.Restore(ctx, args)
		}
	}
	if err != nil {
		err = checkpoint.WithLogErrors(err, filepath.Join(dir, checkpoint.RestoreLog))
		return 0, fmt.Errorf("restore from %s: %w", c.Restored.Source, err)
	}
	return pid, failpoint.Hit("restore-restored")
}

// dropCheckpoint removes what a restore needed.
func (c *Container) dropCheckpoint() error {
	return overlay.RemoveTree(filepath.Join(c.dir, checkpointDir))
}

func (c *Container) hasCheckpoint() bool { return exists(filepath.Join(c.dir, checkpointDir)) }

func restorationOf(from *source) *Restoration {
	if from == nil {
		return nil
	}
	return &Restoration{Source: from.Name(), CheckpointedAt: from.Config.CheckpointedAt}
}

// unstarted says whether the container waits for its processes to be restored,
// so that neither keeper nor OCI runtime know it.
func (c *Container) unstarted() bool { return c.Restored != nil && c.phase() == Created }
