package spec

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Host holds the properties of this node that a specification depends on. lookup.DetectHost reads
// them once at start; tests provide their own.
type Host struct {
	// Hostname is the node's host name. Pods in the node's network namespace share it.
	Hostname string
	// Capabilities are the capabilities that this process holds and can pass on, in the form
	// "CAP_CHOWN". A privileged container gets all of them.
	Capabilities []string
	// CgroupV2 is true if the controllers are in the unified hierarchy.
	CgroupV2 bool
	// HugetlbCgroup is true if the hugetlb controller can limit containers.
	HugetlbCgroup bool
	// Seccomp, AppArmor and SELinux are true if the kernel enforces them.
	Seccomp, AppArmor, SELinux bool
	// LacksX32 is true if the kernel is known to have no x32 system calls. The default seccomp
	// profile then omits them.
	LacksX32 bool
	// AppArmorDefault is the name of the loaded default profile, from lookup.LoadAppArmor. If it is
	// "", a container that requests no profile runs unconfined, and one that requests
	// RuntimeDefault is refused.
	AppArmorDefault string
	// SwapAccounting is true if a cgroup can limit memory and swap together.
	SwapAccounting bool
	// RecursiveReadOnly is true if the kernel has mount_setattr(2) (Linux 5.12).
	RecursiveReadOnly bool
	// OOMScoreAdjMin is the lowest oom_score_adj that a child can get.
	OOMScoreAdjMin int
	// Rlimits are the resource limits of this process. Requests above the hard limit are clamped to
	// it.
	Rlimits []specs.POSIXRlimit
	// RaiseRlimits is true if this process may raise hard limits (CAP_SYS_RESOURCE).
	RaiseRlimits bool
	// Devices are all device nodes of the host, for privileged containers.
	Devices []specs.LinuxDevice
}

// HostNamespace is the value in Namespaces for the node's own namespace.
const HostNamespace = "host"

// Namespaces are the namespaces of a container. Each field is the path of a namespace to join, ""
// for a new one, or HostNamespace for the node's.
type Namespaces struct {
	Net, IPC, UTS, PID, User string
}

// User is a user as resolved in a root file system.
type User struct {
	UID, GID uint32
	// Additional are the supplementary groups, without duplicates.
	Additional []uint32
	// NumberIsName is true if the image has a group with another ID whose name is the number of the
	// primary group.
	NumberIsName bool
	// Username is the requested name, "" if the request was a number.
	Username string
	// Home is the home directory, "/" if the user is not in /etc/passwd.
	Home string
}

// Mount is a bind mount whose source the caller has resolved.
type Mount struct {
	// Source is an absolute path on the host.
	Source string
	// Destination is an absolute path in the container.
	Destination string
	// ReadOnly makes the mount itself read-only.
	ReadOnly bool
	// Relabel sets the container's SELinux mount label on the source.
	Relabel bool
	// Options are additional mount options, such as "noexec".
	Options []string
}

// Submount is a mount below the source of a requested mount.
type Submount struct {
	// Mount is the index of the requested mount in Config.Mounts.
	Mount int
	// Path is the mount point, relative to the requested mount.
	Path string
	// Source is an absolute path on the host.
	Source string
}

// ContainerInput is the complete input of a container's specification.
type ContainerInput struct {
	// ID and PodID are the IDs of the container and its pod.
	ID, PodID string
	// Config and Pod are the CRI requests, unchanged.
	Config *runtimeapi.ContainerConfig
	Pod    *runtimeapi.PodSandboxConfig
	// Image is the run-time part of the image's configuration.
	Image ocispec.ImageConfig
	// Host holds the properties of the node.
	Host Host
	// Features are the features that the OCI runtime reports. Optional features (recursive
	// read-only mounts, mapped mounts) are refused unless it reports them.
	Features *features.Features
	// RootfsPath is the absolute path of the mounted root filesystem.
	RootfsPath string
	// User is the result of ResolveUser.
	User User
	// Namespaces are the namespaces that the container joins or creates.
	Namespaces Namespaces
	// CgroupsPath is the container's cgroup in the cgroup driver's form.
	CgroupsPath string
	// Mounts are the runtime's own mounts: /etc/hosts, /etc/hostname, /etc/resolv.conf, /dev/shm. A
	// mount in Config with the same destination replaces them.
	Mounts []Mount
	// MountSources holds the resolved host path for each entry of Config.Mounts, as PrepareMounts
	// returns it. The caller fills in those of image mounts. Nil means that the host paths in
	// Config are used unchanged.
	MountSources []string
	// MappedSources is true if MountSources already show the files' owners according to the ID
	// mappings of Config.Mounts, so that the OCI runtime need not map them.
	MappedSources bool
	// Submounts are the mounts below MountSources, for an OCI runtime that does not bind them
	// recursively.
	Submounts []Submount
	// Devices are the device nodes for Config.Devices, from ResolveDevices.
	Devices []specs.LinuxDevice
	// DeviceRules are the cgroup rules for Devices.
	DeviceRules []specs.LinuxDeviceCgroup
	// SeccompProfile is the content of the Localhost profile, from ReadSeccomp.
	SeccompProfile []byte
	// ProcessLabel and MountLabel are the SELinux labels, from SELinuxLabels.
	ProcessLabel, MountLabel string
	// Rlimits are the configured default limits of containers. They are clamped to what Host
	// allows.
	Rlimits []specs.POSIXRlimit
	// Sysctls are the pod's sysctls that are not set in its pinned namespaces yet.
	Sysctls map[string]string
	// CDI injects the named devices; nil means that requests for them are refused.
	CDI func(s *specs.Spec, devices []string) error
	// Edits run last, in order, on the finished specification. NRI and similar extensions use only
	// this field.
	Edits []func(*specs.Spec) error
}
