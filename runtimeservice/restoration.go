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
	"github.com/micarun/mica/runtimeservice/state"
)

const (
	// checkpointDir, below a container's directory, holds the checkpoint until its processes are
	// restored.
	checkpointDir = "checkpoint"
	// criuConfigFile, in a bundle, has the options of CRIU.
	criuConfigFile = "criu.conf"
)

// source is the checkpoint that a container continues.
type source struct {
	*checkpoint.Archive
	checkpoint.Description
	// exact is set if the container's config must describe the checkpointed process. Otherwise the
	// config does not describe the process.
	exact bool
}

// origin is what a container is made from: an image, and optionally a checkpoint of a container of
// that image.
type origin struct {
	img  imageservice.Detailed
	from *source
}

// close closes the checkpoint, if any.
func (o origin) close(ctx context.Context) {
	if o.from == nil {
		return
	}
	if err := o.from.Close(); err != nil {
		klog.FromContext(ctx).Error(err, "Closing checkpoint failed", "source", o.from.Name())
	}
}

// openOrigin finds the image or checkpoint that the config names. The caller closes the origin.
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

// openImage opens a checkpoint that is stored as an image, and keeps its layer until the archive is
// closed.
func (s *Service) openImage(img imageservice.Image) (*checkpoint.Archive, error) {
	name := img.ID.String()
	if refs := append(img.Tags, img.Digests...); len(refs) > 0 {
		name = refs[0]
	}
	if !s.opts.RestoreImages {
		return nil, fmt.Errorf("image %s is a checkpoint, and this node does not restore from images (pods.restore_images): %w", name, errdefs.ErrFailedPrecondition)
	}
	release, err := s.layers.Hold(img.Top())
	if err != nil {
		return nil, fmt.Errorf("open checkpoint image %s: %w", name, err)
	}
	begin := func(ctx context.Context) (io.ReadCloser, error) { return s.layers.TarStream(ctx, img.Top()) }
	return checkpoint.OpenStream(name, begin, release), nil
}

// originOf reads the description of the checkpoint and finds its image.
func (s *Service) originOf(ctx context.Context, pod *Pod, cfg *runtimeapi.ContainerConfig, from *source) (origin, error) {
	by, err := s.checkpointer(ctx, pod.Record().Handler)
	if err == nil {
		err = checkRestore(pod.Config(), cfg)
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

// baseImage finds the image of a checkpointed container by the names in the archive, the most exact
// first.
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
	return imageservice.Detailed{}, fmt.Errorf("find the image of the checkpointed container: neither %q nor %q is on this node, pull it first: %w",
		c.RootfsImageRef, c.RootfsImageName, errdefs.ErrNotFound)
}

// restoredConfig returns the config for the record. It names the image that the container is based
// on, not the checkpoint.
func restoredConfig(cfg *runtimeapi.ContainerConfig, from *source) *runtimeapi.ContainerConfig {
	cfg = proto.CloneOf(cfg)
	if from.Config.RootfsImageName == "" || from.exact {
		return cfg
	}
	// The user has named the checkpoint.
	cfg.Image.Image, cfg.Image.UserSpecifiedImage = from.Config.RootfsImageName, ""
	return cfg
}

// processConfig returns the config with the process of the checkpoint, to make a specification
// from. With exact it returns cfg itself.
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

// unpackCheckpoint unpacks the checkpoint: the images of CRIU and the volumes into the container's
// directory, the rest into the mounted root filesystem and the pod's shared memory.
func (s *Service) unpackCheckpoint(ctx context.Context, c *Container, from *source) error {
	dir := filepath.Join(c.Dir(), checkpointDir)
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
		return s.layers.ApplyChanges(ctx, c.ID(), a)
	}})
	if err != nil {
		return fmt.Errorf("restore root filesystem: %w", err)
	}
	if err := s.unpackShm(ctx, c.PodID(), dir); err != nil {
		return err
	}
	return failpoint.Hit("restore-unpacked")
}

// tarArgs is a tar of an unpacked archive, and the function that unpacks it.
type tarArgs struct {
	dir, name string
	into      func(overlay.UnpackArgs) error
}

// unpackTar unpacks one tar and removes it.
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

// unpackShm adds the shared memory of an unpacked archive in dir to the pod's. Existing files
// belong to other containers and stay.
func (s *Service) unpackShm(ctx context.Context, podID, dir string) error {
	if !exists(filepath.Join(dir, checkpoint.ShmFile)) {
		return nil
	}
	shm := filepath.Join(s.paths.PodState(podID), shmDir)
	err := s.unpackTar(ctx, tarArgs{dir: dir, name: checkpoint.ShmFile, into: func(a overlay.UnpackArgs) error {
		a.Keep = true
		return overlay.UnpackTree(ctx, shm, a)
	}})
	if err != nil {
		return fmt.Errorf("restore shared memory of pod %s: %w", podID, err)
	}
	return nil
}

// unpackVolumes replaces the content of the image's volumes by the checkpoint's.
func (s *Service) unpackVolumes(ctx context.Context, c *Container) error {
	volumes, err := os.ReadDir(filepath.Join(c.Dir(), volumesDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	from := filepath.Join(c.Dir(), checkpointDir)
	for _, v := range volumes {
		name := filepath.Join(checkpoint.VolumesDir, v.Name()+".tar")
		if !exists(filepath.Join(from, name)) {
			continue
		}
		dir := filepath.Join(c.Dir(), volumesDir, v.Name())
		if err := emptyDir(ctx, dir); err != nil {
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

// emptyDir removes the content of a directory.
func emptyDir(ctx context.Context, dir string) error {
	names, err := os.ReadDir(dir)
	for _, n := range names {
		err = errors.Join(err, overlay.RemoveTree(ctx, filepath.Join(dir, n.Name())))
	}
	return err
}

// restoreSpec changes the specification to the checkpointed process, if that process fits.
func (s *Service) restoreSpec(c *Container, from *source, now *specs.Spec) error {
	streams, err := checkpoint.ReadStreams(filepath.Join(c.Dir(), checkpointDir))
	if err != nil {
		return err
	}
	err = checkpoint.CheckFit(checkpoint.Fit{Was: &from.Spec, Now: now, Exact: from.exact, Config: c.Config(), Streams: streams})
	if err != nil {
		return err
	}
	was := from.Spec.Process
	now.Process.Args, now.Process.Env, now.Process.Cwd, now.Process.User = was.Args, was.Env, was.Cwd, was.User
	if now.Annotations == nil {
		now.Annotations = map[string]string{}
	}
	h, err := s.handler(c.Record().Handler)
	if err != nil {
		return err
	}
	conf := filepath.Join(s.paths.Bundle(c.ID()), criuConfigFile)
	now.Annotations[checkpoint.CriuConfigAnnotation] = conf
	return os.WriteFile(conf, []byte(checkpoint.CriuOptions(h.Handler().Type, h.Handler().Root)), 0o600)
}

// continueLog starts the container's log with the log of the checkpoint, unless the log exists.
func continueLog(c *Container) error {
	was := filepath.Join(c.Dir(), checkpointDir, checkpoint.LogFile)
	if c.Record().LogPath == "" || !exists(was) {
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

// alreadyRestoring is the pause between requests to the keeper for a container that it is already
// restoring for a previous daemon.
const alreadyRestoring = 50 * time.Millisecond

// restoreProcesses makes the keeper restore the processes of a container that was made from a
// checkpoint, and returns the PID of the first one.
func (s *Service) restoreProcesses(ctx context.Context, p *Pod, c *Container) (int, error) {
	by, err := s.checkpointer(ctx, c.Record().Handler)
	if err != nil {
		return 0, err
	}
	dir := filepath.Join(c.Dir(), checkpointDir)
	args := keeper.RestoreArgs{
		CreateArgs: s.createArgs(p, c, by.handler),
		Images:     filepath.Join(dir, checkpoint.ImagesDir), Work: dir, Flags: oci.CheckpointFlags(),
	}
	args.Env = by.criu.Environment()
	pid, err := s.keeper.Restore(ctx, args)
	for errdefs.IsAlreadyExists(err) {
		st, gerr := s.keeper.Get(ctx, c.ID())
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
		return 0, fmt.Errorf("restore from %s: %w", c.Record().Restored.Source, err)
	}
	return pid, failpoint.Hit("restore-restored")
}

// dropCheckpoint removes the unpacked checkpoint from a container's directory.
func dropCheckpoint(ctx context.Context, dir string) error {
	return overlay.RemoveTree(ctx, filepath.Join(dir, checkpointDir))
}

func (c *Container) hasCheckpoint() bool { return exists(filepath.Join(c.Dir(), checkpointDir)) }

func restorationOf(from *source) *state.Restoration {
	if from == nil {
		return nil
	}
	return &state.Restoration{Source: from.Name(), CheckpointedAt: from.Config.CheckpointedAt}
}

// unstarted reports whether the container waits for the restore of its processes. Until then
// neither keeper nor OCI runtime know it.
func (c *Container) unstarted() bool { return c.Record().Restored != nil && c.Phase() == state.Created }
