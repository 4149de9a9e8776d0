package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// mounts sets the mounts, in mount order: first the default mounts that no other mount replaces,
// then the runtime's and the request's, parents before children. If both have the same destination,
// the request's is used.
func (b *builder) mounts() error {
	requested, err := b.requestedMounts()
	if err != nil {
		return err
	}
	taken := map[string]bool{}
	for _, m := range requested {
		taken[m.Destination] = true
	}
	for _, m := range b.in.Mounts {
		own := ownMount(m)
		if !taken[own.Destination] {
			requested = append(requested, own)
		}
	}
	requested = append(requested, b.submounts(requested)...)
	for _, m := range requested {
		taken[m.Destination] = true
	}
	slices.SortStableFunc(requested, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	for _, m := range b.defaultMounts() {
		hidden := taken[m.Destination] || (taken["/dev"] && strings.HasPrefix(m.Destination, "/dev/")) ||
			(taken["/sys"] && strings.HasPrefix(m.Destination, "/sys/"))
		if !hidden {
			b.spec.Mounts = append(b.spec.Mounts, m)
		}
	}
	b.spec.Mounts = append(b.spec.Mounts, requested...)
	b.spec.Linux.RootfsPropagation = rootfsPropagation(b.in.Config.GetMounts())
	if b.in.Host.SELinux {
		b.spec.Linux.MountLabel = b.in.MountLabel
	}
	return nil
}

func depth(destination string) int {
	return strings.Count(strings.TrimSuffix(destination, "/"), "/")
}

// defaultMounts returns the pseudo file systems of every container.
func (b *builder) defaultMounts() []specs.Mount {
	access := "ro"
	if b.sc.GetPrivileged() {
		access = "rw"
	}
	sys := specs.Mount{
		Destination: "/sys", Type: "sysfs", Source: "sysfs",
		Options: []string{"nosuid", "noexec", "nodev", access},
	}
	if b.userNamespace() && b.in.Namespaces.Net == HostNamespace {
		// A sysfs belongs to the owner of the network namespace. A user namespace cannot mount a
		// new one for the node's network namespace, so the node's own is bind-mounted.
		sys = specs.Mount{
			Destination: "/sys", Type: "bind", Source: "/sys",
			Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", access},
		}
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{
			Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"},
		},
		{
			Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"},
		},
		{
			Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
			Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"},
		},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sys,
		{
			Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", access},
		},
	}
}

// ownMount converts a mount of the runtime itself to OCI's form.
func ownMount(m Mount) specs.Mount {
	options := []string{"rbind", "rprivate", "rw"}
	if m.ReadOnly {
		options[2] = "ro"
	}
	return specs.Mount{
		Destination: path.Clean(m.Destination), Type: "bind", Source: m.Source, Options: append(options, m.Options...),
	}
}

// requestedMounts converts CRI mounts to OCI's form.
func (b *builder) requestedMounts() ([]specs.Mount, error) {
	mounts := b.in.Config.GetMounts()
	if b.in.MountSources != nil && len(b.in.MountSources) != len(mounts) {
		return nil, invalid("%d mount sources for %d mounts", len(b.in.MountSources), len(mounts))
	}
	var out []specs.Mount
	for i, m := range mounts {
		source := m.GetHostPath()
		if b.in.MountSources != nil {
			source = b.in.MountSources[i]
		}
		mount, err := b.requestedMount(m, source)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.GetContainerPath(), err)
		}
		out = append(out, mount)
	}
	return out, nil
}

func (b *builder) requestedMount(m *runtimeapi.Mount, source string) (specs.Mount, error) {
	if !path.IsAbs(source) {
		return specs.Mount{}, invalid("source %q is not an absolute path", source)
	}
	options := []string{"rbind", propagation(m)}
	switch {
	case m.GetRecursiveReadOnly():
		if !b.in.Host.RecursiveReadOnly || !b.listsOption("rro") {
			return specs.Mount{}, fmt.Errorf("recursive read-only: %w", crierrors.ErrRROUnsupported)
		}
		options = append(options, "rro")
	case m.GetReadonly() || m.GetImage() != nil:
		options = append(options, "ro")
	default:
		options = append(options, "rw")
	}
	if m.GetImage() != nil {
		// The same flags as the image's view on the host. A user namespace may not clear them.
		options = append(options, "nosuid", "nodev")
	}
	for _, o := range m.GetMountOptions() {
		if err := b.checkMountOption(o); err != nil {
			return specs.Mount{}, err
		}
		options = append(options, o)
	}
	mount := specs.Mount{Destination: path.Clean(m.GetContainerPath()), Type: "bind", Source: source, Options: options}
	if len(m.GetUidMappings())+len(m.GetGidMappings()) > 0 && !b.in.MappedSources {
		if !b.idmap() {
			return specs.Mount{}, unsupported("id-mapped mount: the OCI runtime does not support it")
		}
		mount.UIDMappings, mount.GIDMappings = idMappings(m.GetUidMappings()), idMappings(m.GetGidMappings())
	}
	return mount, nil
}

// submounts returns bind mounts for the mounts below the sources of the request's mounts, which are
// first in all. It leaves out those covered by another mount of the container, since they would
// hide that mount.
func (b *builder) submounts(all []specs.Mount) []specs.Mount {
	taken := map[string]bool{}
	for _, m := range all {
		taken[m.Destination] = true
	}
	var out []specs.Mount
	for _, sub := range b.in.Submounts {
		parent := all[sub.Mount]
		destination := path.Join(parent.Destination, sub.Path)
		covered := false
		for at := destination; len(at) > len(parent.Destination) && !covered; at = path.Dir(at) {
			covered = taken[at]
		}
		if !covered {
			out = append(out, specs.Mount{Destination: destination, Type: "bind", Source: sub.Source, Options: recursiveOptions(parent.Options)})
		}
	}
	return out
}

// recursiveOptions returns those options of a bind mount that also apply to the mounts below its
// source.
func recursiveOptions(options []string) []string {
	return slices.DeleteFunc(slices.Clone(options), func(o string) bool {
		return o == "ro" || o == "rw" || slices.Contains(bindFlags(), o)
	})
}

func propagation(m *runtimeapi.Mount) string {
	switch m.GetPropagation() {
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		return "rshared"
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		return "rslave"
	default:
		return "rprivate"
	}
}

// rootfsPropagation returns the widest propagation that any mount needs; "" means the OCI runtime's
// default, which is private.
func rootfsPropagation(mounts []*runtimeapi.Mount) string {
	widest := ""
	for _, m := range mounts {
		switch p := propagation(m); p {
		case "rshared":
			return p
		case "rslave":
			widest = p
		}
	}
	return widest
}

// checkMountOption accepts only flags of a bind mount. Other options could override the mount's
// type, access or propagation, which have fields of their own.
func (b *builder) checkMountOption(o string) error {
	flags := bindFlags()
	if !slices.Contains(flags, o) && !slices.Contains(flags, strings.TrimPrefix(o, "r")) {
		return invalid("mount option %q", o)
	}
	if known := b.in.Features; known != nil && known.MountOptions != nil && !b.listsOption(o) {
		return unsupported("mount option %q: the OCI runtime does not know it", o)
	}
	return nil
}

// bindFlags returns the flags of a bind mount besides read-only. With the prefix "r", a flag
// applies to all mounts below as well.
func bindFlags() []string {
	return []string{
		"nosuid", "suid", "nodev", "dev", "noexec", "exec", "noatime", "atime", "nodiratime", "diratime",
		"relatime", "norelatime", "strictatime", "nostrictatime", "nosymfollow", "symfollow",
	}
}

// listsOption reports whether the OCI runtime reports support for a mount option.
func (b *builder) listsOption(o string) bool {
	return b.in.Features != nil && slices.Contains(b.in.Features.MountOptions, o)
}

// idmap reports whether the OCI runtime supports ID-mapped mounts.
func (b *builder) idmap() bool {
	f := b.in.Features
	if f == nil || f.Linux == nil || f.Linux.MountExtensions == nil || f.Linux.MountExtensions.IDMap == nil {
		return false
	}
	enabled := f.Linux.MountExtensions.IDMap.Enabled
	return enabled != nil && *enabled
}
