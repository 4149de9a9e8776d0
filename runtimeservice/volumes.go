package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/micarun/mica/imageservice"
	"github.com/micarun/mica/runtimeservice/spec"
	"github.com/micarun/mica/runtimeservice/spec/lookup"
	"github.com/micarun/mica/runtimeservice/state"
)

// volumesDir is the directory of the image's volumes, in a container's own.
const volumesDir = "volumes"

// mountArgs are the arguments of prepareMounts.
type mountArgs struct {
	pod    *Pod
	c      *Container
	from   origin
	rootfs string
	label  string // SELinux label of sources that are relabelled
}

// preparedMounts are the mounts of a container, whose sources exist and have their label.
type preparedMounts struct {
	sources   []string        // of the config's mounts
	submounts []spec.Submount // below the sources
	own       []spec.Mount    // the pod's files and the volumes of the image
}

// prepareMounts makes what the container mounts: directories on the host, mounted images, volumes
// with mapped IDs, and the image's volumes with their content.
func (s *Service) prepareMounts(ctx context.Context, a mountArgs) (preparedMounts, error) {
	var m preparedMounts
	var err error
	if m.sources, err = s.mountSources(ctx, a.pod, a.c); err != nil {
		return m, err
	}
	if m.submounts, err = s.submounts(a.pod, a.c, m.sources); err != nil {
		return m, err
	}
	volumes, err := s.imageVolumes(ctx, a)
	if err != nil {
		return m, err
	}
	if a.from.from != nil {
		if err := s.unpackVolumes(ctx, a.c); err != nil {
			return m, err
		}
	}
	cfg := a.c.Config()
	m.own = append(s.podMounts(a.pod, cfg.GetLinux().GetSecurityContext().GetReadonlyRootfs()), volumes...)
	return m, lookup.Relabel(spec.ContainerInput{Config: cfg, MountLabel: a.label, MountSources: m.sources, Mounts: m.own})
}

// mountSources returns the source of every mount of the container. A missing host path becomes a
// directory. Images, and host paths with ID mappings, are mounted below the bundle.
func (s *Service) mountSources(ctx context.Context, p *Pod, c *Container) ([]string, error) {
	mounts := c.Config().GetMounts()
	sources, err := lookup.PrepareMounts(mounts)
	if err != nil {
		return nil, err
	}
	for i, m := range mounts {
		if m.GetImage().GetImage() == "" {
			if sources[i], err = s.mapVolume(ctx, p, volume{c: c, m: m, index: i, source: sources[i]}); err != nil {
				return nil, fmt.Errorf("map mount %s: %w", m.GetContainerPath(), err)
			}
			continue
		}
		if sources[i], err = s.mountImage(p, volume{c: c, m: m, index: i}); err != nil {
			return nil, fmt.Errorf("%w: mount image %s at %s: %w", crierrors.ErrImageVolumeMountFailed, m.GetImage().GetImage(), m.GetContainerPath(), err)
		}
	}
	return sources, nil
}

// volume is one mount of a container's config.
type volume struct {
	c      *Container
	m      *runtimeapi.Mount
	index  int    // among the config's mounts
	source string // resolved path on the host
}

// mountImage mounts an image for an image volume, and returns the path of the requested part. Its
// files belong to the users in the image, also in a user namespace.
func (s *Service) mountImage(p *Pod, v volume) (string, error) {
	m := v.m
	img, err := s.images.Get(m.GetImage().GetImage())
	if err != nil {
		return "", err
	}
	if len(img.Layers) == 0 {
		return "", fmt.Errorf("image %s has no layers: %w", img.ID, errdefs.ErrInvalidArgument)
	}
	view := filepath.Join(s.paths.Bundle(v.c.ID()), "images", strconv.Itoa(v.index))
	if err := os.MkdirAll(view, privateMode); err != nil {
		return "", err
	}
	// The image can be removed while its layers are mounted here.
	release, err := s.layers.Hold(img.Top())
	if err != nil {
		return "", err
	}
	v.c.held = append(v.c.held, release)
	if err := recordMounted(v, img); err != nil {
		return "", err
	}
	if err := s.layers.MountView(img.Top(), view, s.userNamespace(p)); err != nil {
		return "", err
	}
	if m.GetImageSubPath() == "" {
		return view, nil
	}
	sub, err := securejoin.SecureJoin(view, m.GetImageSubPath())
	if err != nil {
		return "", fmt.Errorf("resolve sub path %q: %w", m.GetImageSubPath(), err)
	}
	if _, err := os.Lstat(sub); errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("sub path %q: %w", m.GetImageSubPath(), errdefs.ErrNotFound)
	} else if err != nil {
		return "", fmt.Errorf("sub path %q: %w", m.GetImageSubPath(), err)
	}
	return sub, nil
}

// recordMounted persists that the container mounts the image, before it does.
func recordMounted(v volume, img imageservice.Image) error {
	return v.c.Update(func(st *state.ContainerState) error {
		images := map[int]string{v.index: img.ID.String()}
		maps.Copy(images, st.MountedImages)
		st.MountedImages, st.MountedLayers = images, append(slices.Clone(st.MountedLayers), img.Top())
		return nil
	})
}

// outlived reports whether an image that the container uses has been removed. The image's layers
// can be swept after the container. The caller holds c.op.
func (s *Service) outlived(c *Container) bool {
	for _, id := range append(slices.Collect(maps.Values(c.State().MountedImages)), c.Record().ImageID) {
		if _, err := s.images.Get(id); errdefs.IsNotFound(err) {
			return true
		}
	}
	return false
}

// imageVolumes makes a directory on the host for every volume of the image, unless the container
// mounts something there. Each directory has the image's content and is removed with the container.
func (s *Service) imageVolumes(ctx context.Context, a mountArgs) ([]spec.Mount, error) {
	volumes, err := spec.ImageVolumes(a.from.img.Config.Config)
	if err != nil {
		return nil, err
	}
	covered := map[string]bool{}
	for _, m := range a.c.Config().GetMounts() {
		covered[path.Clean(m.GetContainerPath())] = true
	}
	var mounts []spec.Mount
	for i, dest := range volumes {
		if covered[dest] {
			continue
		}
		if err := ctx.Err(); err != nil { // the copies may take long
			return nil, fmt.Errorf("volume %s: %w", dest, err)
		}
		dir := filepath.Join(a.c.Dir(), volumesDir, strconv.Itoa(i))
		err := fillVolume(a.pod, dir, a.rootfs, dest)
		if errors.Is(err, unix.ENAMETOOLONG) {
			return nil, fmt.Errorf("volume %.64q: a path of %d bytes is too long in the root file system: %w", dest, len(dest), errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", dest, err)
		}
		mounts = append(mounts, spec.Mount{Source: dir, Destination: dest, Relabel: true})
	}
	return mounts, nil
}

func fillVolume(p *Pod, dir, rootfs, dest string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	uid, gid := p.root()
	if err := os.Lchown(dir, uid, gid); err != nil {
		return err
	}
	// The image may have a symbolic link there, to anywhere.
	src, err := securejoin.SecureJoin(rootfs, dest)
	if err != nil {
		return err
	}
	st, err := os.Stat(src)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("not a directory in the image: %w", errdefs.ErrInvalidArgument)
	}
	return fs.CopyDir(dir, src)
}
