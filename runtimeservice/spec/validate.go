package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxHostname is HOST_NAME_MAX of sethostname(2).
const maxHostname = 64

// maxPath is the kernel's PATH_MAX. An OCI runtime makes missing directories one by one, and does
// not finish within minutes for a path of a million bytes.
const maxPath = 4096

// maxMappings is the kernel's limit of mappings (user_namespaces(7)).
const maxMappings = 340

// cdiAnnotation is the prefix of container annotations with CDI devices. Clients older than the
// CDI_devices field use it.
const cdiAnnotation = "cdi.k8s.io/"

// ValidatePod checks a pod request against CRI's rules, independent of the node. Its errors are
// ErrInvalidArgument.
func ValidatePod(pod *runtimeapi.PodSandboxConfig) error {
	if pod.GetMetadata().GetName() == "" {
		return invalid("pod has no metadata name")
	}
	if pod.GetWindows() != nil {
		return invalid("pod has a windows configuration")
	}
	if len(pod.GetHostname()) > maxHostname || strings.ContainsAny(pod.GetHostname(), "/\x00\n ") {
		return invalid("hostname %q", pod.GetHostname())
	}
	if d := pod.GetLogDirectory(); d != "" && !cleanAbs(d) {
		return invalid("log directory %q is not an absolute path without ..", d)
	}
	l := pod.GetLinux()
	if slices.Contains(strings.Split(l.GetCgroupParent(), "/"), "..") {
		return invalid("cgroup parent %q", l.GetCgroupParent())
	}
	if n := hostPorts(pod); n > maxHostPorts {
		return invalid("%d host ports, more than %d", n, maxHostPorts)
	}
	sc := l.GetSecurityContext()
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return invalid("run_as_group without run_as_user")
	}
	for _, p := range []*runtimeapi.SecurityProfile{sc.GetSeccomp(), sc.GetApparmor()} {
		if p != nil && !sc.GetPrivileged() {
			if _, err := checkProfile("pod", p); err != nil {
				return err
			}
		}
	}
	if err := validateNamespaces(sc.GetNamespaceOptions(), true); err != nil {
		return err
	}
	return validateSysctls(l.GetSysctls(), sc.GetNamespaceOptions())
}

// ValidateContainer checks a container request against CRI's rules, independent of the node. Its
// errors are ErrInvalidArgument.
func ValidateContainer(c *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) error {
	if c.GetMetadata().GetName() == "" {
		return invalid("container has no metadata name")
	}
	if pod.GetMetadata().GetName() == "" {
		return invalid("pod has no metadata name")
	}
	if c.GetWindows() != nil {
		return invalid("container has a windows configuration")
	}
	if err := validateLog(c, pod); err != nil {
		return err
	}
	for _, m := range c.GetMounts() {
		if err := validateMount(m); err != nil {
			return err
		}
	}
	for _, d := range c.GetDevices() {
		if !path.IsAbs(d.GetHostPath()) || (d.GetContainerPath() != "" && !path.IsAbs(d.GetContainerPath())) {
			return invalid("device %q at %q: path is not absolute", d.GetHostPath(), d.GetContainerPath())
		}
		if strings.Trim(d.GetPermissions(), "rwm") != "" {
			return invalid("device %q: permissions %q", d.GetHostPath(), d.GetPermissions())
		}
	}
	if err := validateEnv(c.GetEnvs()); err != nil {
		return err
	}
	if c.GetStdinOnce() && !c.GetStdin() {
		return invalid("stdin_once without stdin")
	}
	return validateSecurity(c.GetLinux().GetSecurityContext(), pod)
}

func validateLog(c *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) error {
	p := c.GetLogPath()
	if p == "" {
		return nil
	}
	outside := path.IsAbs(p) || slices.Contains(strings.Split(p, "/"), "..")
	if outside || path.Clean(p) == "." || strings.ContainsRune(p, 0) {
		return invalid("log path %q is not below the log directory", p)
	}
	if pod.GetLogDirectory() == "" {
		return invalid("log path %q without a log directory of the pod", p)
	}
	return nil
}

func validateMount(m *runtimeapi.Mount) error {
	dst := m.GetContainerPath()
	switch {
	case max(len(dst), len(m.GetHostPath()), len(m.GetImageSubPath())) > maxPath:
		return invalid("mount %.64q: a path of it has more than %d bytes", dst, maxPath)
	case !path.IsAbs(dst) || path.Clean(dst) == "/" || strings.ContainsRune(dst, 0):
		return invalid("mount: container path %q", dst)
	case m.GetImage() != nil && m.GetHostPath() != "":
		return invalid("mount %s: host path and image exclude each other", dst)
	case m.GetImage() != nil && !m.GetReadonly():
		return invalid("mount %s: an image can be mounted read-only only", dst)
	case m.GetImage() == nil && m.GetImageSubPath() != "":
		return invalid("mount %s: image_sub_path without image", dst)
	case m.GetImage() != nil && slices.Contains(strings.Split(m.GetImageSubPath(), "/"), ".."):
		return invalid("mount %s: image_sub_path %q", dst, m.GetImageSubPath())
	case m.GetImage() == nil && !path.IsAbs(m.GetHostPath()):
		return invalid("mount %s: host path %q is not absolute", dst, m.GetHostPath())
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return invalid("mount %s: recursive_read_only without readonly", dst)
	case m.GetRecursiveReadOnly() && m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return invalid("mount %s: recursive_read_only with propagation", dst)
	}
	if _, ok := runtimeapi.MountPropagation_name[int32(m.GetPropagation())]; !ok {
		return invalid("mount %s: propagation %d", dst, m.GetPropagation())
	}
	return nil
}

func validateSecurity(sc *runtimeapi.LinuxContainerSecurityContext, pod *runtimeapi.PodSandboxConfig) error {
	podSC := pod.GetLinux().GetSecurityContext()
	if sc.GetPrivileged() && !podSC.GetPrivileged() {
		return invalid("privileged container in a pod that is not")
	}
	if sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "" {
		return invalid("run_as_user and run_as_username exclude each other")
	}
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "" {
		return invalid("run_as_group without run_as_user or run_as_username")
	}
	if _, ok := runtimeapi.SupplementalGroupsPolicy_name[int32(sc.GetSupplementalGroupsPolicy())]; !ok {
		return invalid("supplemental groups policy %d", sc.GetSupplementalGroupsPolicy())
	}
	if err := validateConfinement(sc); err != nil {
		return err
	}
	if sc.GetNamespaceOptions() == nil {
		return nil
	}
	if err := validateNamespaces(sc.GetNamespaceOptions(), false); err != nil {
		return err
	}
	return validateUserNamespace(sc.GetNamespaceOptions(), podSC.GetNamespaceOptions())
}

// validateConfinement checks settings that do not apply to a privileged container and are therefore
// not checked for one.
func validateConfinement(sc *runtimeapi.LinuxContainerSecurityContext) error {
	if sc.GetPrivileged() {
		return nil
	}
	for _, p := range slices.Concat(sc.GetMaskedPaths(), sc.GetReadonlyPaths()) {
		if !path.IsAbs(p) {
			return invalid("masked or read-only path %q is not absolute", p)
		}
	}
	if _, err := seccompProfile(sc); err != nil {
		return err
	}
	_, err := apparmorProfile(sc)
	return err
}

// validateNamespaces checks the modes. Network and IPC namespaces are the pod's or the node's; only
// containers can target another container's PID namespace.
func validateNamespaces(o *runtimeapi.NamespaceOption, pod bool) error {
	for name, mode := range map[string]runtimeapi.NamespaceMode{"network": o.GetNetwork(), "ipc": o.GetIpc()} {
		if mode != runtimeapi.NamespaceMode_POD && mode != runtimeapi.NamespaceMode_NODE {
			return invalid("%s namespace mode %s", name, mode)
		}
	}
	switch o.GetPid() {
	case runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE:
	case runtimeapi.NamespaceMode_TARGET:
		if pod {
			return invalid("pid namespace mode TARGET of a pod")
		}
		if o.GetTargetId() == "" {
			return invalid("pid namespace mode TARGET without target_id")
		}
	default:
		return invalid("pid namespace mode %s", o.GetPid())
	}
	u := o.GetUsernsOptions()
	if u == nil {
		return nil
	}
	if u.GetMode() != runtimeapi.NamespaceMode_POD && u.GetMode() != runtimeapi.NamespaceMode_NODE {
		return invalid("user namespace mode %s", u.GetMode())
	}
	if u.GetMode() == runtimeapi.NamespaceMode_NODE && len(u.GetUids())+len(u.GetGids()) > 0 {
		return invalid("user namespace mode NODE with mappings")
	}
	if u.GetMode() == runtimeapi.NamespaceMode_NODE {
		return nil
	}
	if err := validateMappings(u.GetUids()); err != nil {
		return fmt.Errorf("users: %w", err)
	}
	if err := validateMappings(u.GetGids()); err != nil {
		return fmt.Errorf("groups: %w", err)
	}
	return nil
}

// validateMappings checks the kernel's rules (user_namespaces(7)), and that ID 0 is mapped.
func validateMappings(maps []*runtimeapi.IDMapping) error {
	if len(maps) > maxMappings {
		return invalid("%d user namespace mappings, the limit is %d", len(maps), maxMappings)
	}
	root := false
	for i, m := range maps {
		if m.GetLength() == 0 || uint64(m.GetContainerId())+uint64(m.GetLength()) > 1<<32 || uint64(m.GetHostId())+uint64(m.GetLength()) > 1<<32 {
			return invalid("user namespace mapping of %d IDs from %d to %d", m.GetLength(), m.GetContainerId(), m.GetHostId())
		}
		root = root || m.GetContainerId() == 0
		for _, other := range maps[:i] {
			if overlap(m.GetContainerId(), m.GetLength(), other.GetContainerId(), other.GetLength()) ||
				overlap(m.GetHostId(), m.GetLength(), other.GetHostId(), other.GetLength()) {
				return invalid("user namespace mappings from %d and %d overlap", other.GetContainerId(), m.GetContainerId())
			}
		}
	}
	if !root {
		return invalid("user namespace without a mapping of ID 0")
	}
	return nil
}

func overlap(a, lengthA, b, lengthB uint32) bool {
	return uint64(a) < uint64(b)+uint64(lengthB) && uint64(b) < uint64(a)+uint64(lengthA)
}

// validateUserNamespace returns an error if a container requests other mappings than its pod's.
func validateUserNamespace(container, pod *runtimeapi.NamespaceOption) error {
	c, p := container.GetUsernsOptions(), pod.GetUsernsOptions()
	if c == nil {
		return nil
	}
	if c.GetMode() != p.GetMode() || !sameMappings(c.GetUids(), p.GetUids()) || !sameMappings(c.GetGids(), p.GetGids()) {
		return invalid("user namespace of the container differs from its pod's")
	}
	return nil
}

func sameMappings(a, b []*runtimeapi.IDMapping) bool {
	return slices.EqualFunc(a, b, func(x, y *runtimeapi.IDMapping) bool {
		return x.GetHostId() == y.GetHostId() && x.GetContainerId() == y.GetContainerId() && x.GetLength() == y.GetLength()
	})
}

// validateSysctls accepts sysctls that are confined to a namespace of the pod (namespaces(7)).
func validateSysctls(sysctls map[string]string, o *runtimeapi.NamespaceOption) error {
	for raw, value := range sysctls {
		name := strings.ReplaceAll(raw, "/", ".")
		if slices.Contains(strings.Split(name, "."), "") || strings.ContainsAny(raw+strings.TrimSpace(value), "\x00\n") {
			return invalid("sysctl %q", raw)
		}
		switch {
		case strings.HasPrefix(name, "net."):
			if o.GetNetwork() == runtimeapi.NamespaceMode_NODE {
				return invalid("sysctl %q in the node's network namespace", raw)
			}
		case ipcSysctl(name):
			if o.GetIpc() == runtimeapi.NamespaceMode_NODE {
				return invalid("sysctl %q in the node's IPC namespace", raw)
			}
		default:
			return invalid("sysctl %q is not confined to a namespace", raw)
		}
	}
	return nil
}

func ipcSysctl(name string) bool {
	return strings.HasPrefix(name, "fs.mqueue.") || strings.HasPrefix(name, "kernel.shm") ||
		strings.HasPrefix(name, "kernel.msg") || name == "kernel.sem"
}

// cdiNames returns a request's CDI devices without duplicates, also those that older clients
// request by annotations.
func cdiNames(c *runtimeapi.ContainerConfig) []string {
	var names []string
	have := map[string]bool{}
	add := func(name string) {
		if !have[name] {
			have[name] = true
			names = append(names, name)
		}
	}
	for _, d := range c.GetCDIDevices() {
		add(d.GetName())
	}
	var keys []string
	for key := range c.GetAnnotations() {
		if strings.HasPrefix(key, cdiAnnotation) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		for _, name := range strings.Split(c.GetAnnotations()[key], ",") {
			add(name)
		}
	}
	return names
}

func cleanAbs(p string) bool {
	return path.IsAbs(p) && !slices.Contains(strings.Split(p, "/"), "..") && !strings.ContainsRune(p, 0)
}

// maxHostPorts limits the rules that the plugin portmap makes for a pod, which takes it some
// milliseconds for each port.
const maxHostPorts = 2048

// hostPorts counts the ports of the node that a pod asks for. A pod in the node's network lists its
// ports, too, but needs no rules.
func hostPorts(pod *runtimeapi.PodSandboxConfig) (n int) {
	if pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE {
		return 0
	}
	for _, m := range pod.GetPortMappings() {
		if m.GetHostPort() != 0 {
			n++
		}
	}
	return n
}
