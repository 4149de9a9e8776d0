package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/mounts"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/podns"
	"github.com/micarun/mica/runtimeservice/spec"
)

func (p *Pod) userNamespace() *runtimeapi.UserNamespace { return spec.PodUserNamespace(p.Config()) }

// root returns the host's IDs of the user and the group that are 0 in the pod.
func (p *Pod) root() (uid, gid int) {
	users := p.userNamespace()
	return hostRoot(users.GetUids()), hostRoot(users.GetGids())
}

func hostRoot(maps []*runtimeapi.IDMapping) int {
	for _, m := range maps {
		if m.GetContainerId() == 0 {
			return int(m.GetHostId())
		}
	}
	return 0
}

// rootOf returns the root of the container's pod, as Pod.root does.
func (s *Service) rootOf(c *Container) (uid, gid int) {
	pod, err := s.pods.Get(c.PodID())
	if err != nil {
		return 0, 0 // the pod has just been removed, with the container
	}
	return pod.root()
}

// userNamespace returns the file of the pod's user namespace, "" if it uses the host's.
func (s *Service) userNamespace(p *Pod) string {
	if p.userNamespace() == nil {
		return ""
	}
	return filepath.Join(s.paths.PodState(p.ID()), podns.User)
}

// owners returns the ID mappings of the pod's root filesystems; nil if the pod uses the host's user
// namespace.
func (s *Service) owners(p *Pod) *overlay.Owners {
	users := p.userNamespace()
	if users == nil {
		return nil
	}
	return &overlay.Owners{UserNS: s.userNamespace(p), UIDs: idMaps(users.GetUids()), GIDs: idMaps(users.GetGids())}
}

func idMaps(maps []*runtimeapi.IDMapping) []overlay.IDMap {
	out := make([]overlay.IDMap, len(maps))
	for i, m := range maps {
		out[i] = overlay.IDMap{Inside: m.GetContainerId(), Outside: m.GetHostId(), Length: m.GetLength()}
	}
	return out
}

// newUserNamespace describes the user namespace to make; nil for none.
func (s *Service) newUserNamespace(users *runtimeapi.UserNamespace) *podns.UserNS {
	if users == nil {
		return nil
	}
	return &podns.UserNS{
		UIDs: sysMappings(users.GetUids()), GIDs: sysMappings(users.GetGids()),
		Holder: []string{s.opts.InitBinary, "hold"},
	}
}

func sysMappings(maps []*runtimeapi.IDMapping) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, len(maps))
	for i, m := range maps {
		out[i] = syscall.SysProcIDMap{ContainerID: int(m.GetContainerId()), HostID: int(m.GetHostId()), Size: int(m.GetLength())}
	}
	return out
}

// checkUserNamespaces returns ErrFailedPrecondition if pods of the handler cannot have user
// namespaces.
func (s *Service) checkUserNamespaces(h handler) error {
	if s.noUserNS != nil {
		return fmt.Errorf("user namespaces do not work on this node: %w: %w", s.noUserNS, errdefs.ErrFailedPrecondition)
	}
	linux := h.features.oci.Linux
	if linux == nil || !slices.Contains(linux.Namespaces, "user") {
		return fmt.Errorf("user namespaces are not supported by runtime handler %q: %w", h.name, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// probeUserNamespaces makes a user namespace and mounts a layer with its mappings. It returns an
// error if pods cannot have user namespaces. A layer that cannot be mapped is no error, because
// containers then get a copy of their image.
func (s *Service) probeUserNamespaces(ctx context.Context) error {
	dir := filepath.Join(s.opts.StateDir, "userns-probe")
	if err := podns.Unpin(dir); err != nil { // left by a daemon that was killed here
		return err
	}
	maps := []*runtimeapi.IDMapping{{HostId: 1 << 16, Length: 1 << 16}}
	user := s.newUserNamespace(&runtimeapi.UserNamespace{Uids: maps, Gids: maps})
	if err := podns.Pin(ctx, podns.Args{Dir: dir, User: user}); err != nil {
		return err
	}
	err := s.layers.ProbeMapped(filepath.Join(dir, podns.User))
	if errdefs.IsNotImplemented(err) {
		klog.FromContext(ctx).Info("Containers in user namespaces each get a copy of their image", "reason", err.Error())
		err = nil
	}
	return errors.Join(err, podns.Unpin(dir), os.Remove(dir))
}

// makeBundle makes the bundle's directory. Root in a user namespace needs search permission for the
// root filesystem; no other user does.
func (s *Service) makeBundle(p *Pod, c *Container) error {
	dir := s.paths.Bundle(c.ID())
	if err := os.Mkdir(dir, privateMode); err != nil || p.userNamespace() == nil {
		return err
	}
	_, gid := p.root()
	if err := os.Chown(dir, 0, gid); err != nil {
		return err
	}
	return os.Chmod(dir, mappedMode)
}

// exposeRootfs bind-mounts the root filesystem in the bundle, where root in the pod's user
// namespace can reach it. The layer store's directories admit only the host's root.
func (s *Service) exposeRootfs(c *Container, rootfs string) (string, error) {
	target := filepath.Join(s.paths.Bundle(c.ID()), "rootfs")
	if err := os.Mkdir(target, privateMode); err != nil {
		return "", err
	}
	if err := unix.Mount(rootfs, target, "", unix.MS_BIND, ""); err != nil {
		return "", fmt.Errorf("bind %s to %s: %w", rootfs, target, err)
	}
	return target, nil
}

// mapVolume returns the volume's source. If the mount asks for ID mappings, it returns a path below
// the bundle instead, at which it mounts the source, submounts included, with these mappings. Any
// OCI runtime can then bind it, since not all of them map mounts. Errors: ErrInvalidArgument for
// bidirectional propagation, ErrFailedPrecondition if the file system cannot be mapped.
func (s *Service) mapVolume(ctx context.Context, p *Pod, v volume) (string, error) {
	if len(v.m.GetUidMappings())+len(v.m.GetGidMappings()) == 0 {
		return v.source, nil
	}
	if v.m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
		return "", fmt.Errorf("id-mapped mount with bidirectional propagation: %w", errdefs.ErrInvalidArgument)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Propagation: propagationBetween(v.m)}
	base := filepath.Join(s.paths.Bundle(v.c.ID()), "volumes")
	if err := os.MkdirAll(base, privateMode); err != nil {
		return "", err
	}
	ns, done, err := s.mappingFor(ctx, p, v, base)
	if err != nil {
		return "", err
	}
	defer done()
	attr.Userns_fd = uint64(ns.Fd())
	target := filepath.Join(base, strconv.Itoa(v.index))
	return target, mounts.BindTree(v.source, target, &attr)
}

// mappingFor opens a user namespace with the mount's mappings. It uses the pod's own if that has
// these mappings, as with a kubelet, and else makes one. done closes it.
func (s *Service) mappingFor(ctx context.Context, p *Pod, v volume, base string) (ns *os.File, done func(), err error) {
	pod := p.userNamespace()
	uids, gids := v.m.GetUidMappings(), v.m.GetGidMappings()
	if pod != nil && sameMappings(uids, pod.GetUids()) && sameMappings(gids, pod.GetGids()) {
		ns, err = os.Open(s.userNamespace(p))
		return ns, func() { _ = ns.Close() }, err
	}
	if err := s.noUserNS; err != nil {
		return nil, nil, fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	dir := filepath.Join(base, strconv.Itoa(v.index)+".map")
	user := s.newUserNamespace(&runtimeapi.UserNamespace{Uids: uids, Gids: gids})
	if err := podns.Pin(ctx, podns.Args{Dir: dir, User: user}); err != nil {
		return nil, nil, fmt.Errorf("make user namespace with the mappings: %w", err)
	}
	if ns, err = os.Open(filepath.Join(dir, podns.User)); err != nil {
		return nil, nil, errors.Join(err, podns.Unpin(dir))
	}
	return ns, func() { _, _ = ns.Close(), podns.Unpin(dir) }, nil // the removal of the bundle removes the rest
}

func sameMappings(a, b []*runtimeapi.IDMapping) bool {
	return slices.EqualFunc(a, b, func(x, y *runtimeapi.IDMapping) bool { return proto.Equal(x, y) })
}
