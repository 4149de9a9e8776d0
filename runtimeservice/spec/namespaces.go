package spec

import (
	"maps"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// namespaces sets the namespaces to join or create, and hostname, sysctls and user mappings.
func (b *builder) namespaces() error {
	l, ns := b.spec.Linux, b.in.Namespaces
	l.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	for _, n := range []struct {
		kind specs.LinuxNamespaceType
		path string
	}{
		{specs.PIDNamespace, ns.PID},
		{specs.IPCNamespace, ns.IPC},
		{specs.UTSNamespace, ns.UTS},
		{specs.NetworkNamespace, ns.Net},
	} {
		if n.path != HostNamespace {
			l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: n.kind, Path: n.path})
		}
	}
	// As in containerd, a privileged container sees the node's cgroups. On v1, where a cgroup
	// namespace hides less, every container does.
	if b.in.Host.CgroupV2 && !b.sc.GetPrivileged() {
		l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	if ns.UTS == "" {
		b.spec.Hostname = b.in.Pod.GetHostname()
	}
	if len(b.in.Sysctls) > 0 {
		l.Sysctl = maps.Clone(b.in.Sysctls)
	}
	return b.userMappings()
}

// userNamespace reports whether the pod runs in a user namespace of its own.
func (b *builder) userNamespace() bool { return PodUserNamespace(b.in.Pod) != nil }

// PodUserNamespace returns the pod's user namespace options, or nil if it uses the node's user
// namespace. Mode POD is the zero value, so it counts only if the options are set.
func PodUserNamespace(pod *runtimeapi.PodSandboxConfig) *runtimeapi.UserNamespace {
	o := pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if o == nil || o.GetMode() != runtimeapi.NamespaceMode_POD {
		return nil
	}
	return o
}

func (b *builder) userMappings() error {
	path, o := b.in.Namespaces.User, PodUserNamespace(b.in.Pod)
	if o == nil {
		if path != "" && path != HostNamespace {
			return invalid("user namespace %q for a pod without mappings", path)
		}
		return nil
	}
	if path == HostNamespace {
		return unsupported("the pod asks for a user namespace of its own")
	}
	if b.sc.GetPrivileged() {
		return invalid("a privileged container cannot be in a user namespace")
	}
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: path})
	b.spec.Linux.UIDMappings = idMappings(o.GetUids())
	b.spec.Linux.GIDMappings = idMappings(o.GetGids())
	return nil
}

func idMappings(in []*runtimeapi.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range in {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return out
}
