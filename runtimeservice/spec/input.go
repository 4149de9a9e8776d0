package spec

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Host holds the facts about this node that decide what a specification may
// ask for. DetectHost reads them once at start; tests write their own.
type Host struct {
	// Hostname is the node's, which pods on its network share.
	Hostname string
	// Capabilities is the bounding set that this process holds, in the
	// spelling "CAP_CHOWN". It is what a privileged container gets.
	Capabilities []string
	// CgroupV2 is true where the unified hierarchy carries the controllers.
	CgroupV2 bool
	// HugetlbCgroup is true where the hugetlb controller can limit containers.
	HugetlbCgroup bool
	// Seccomp, AppArmor and SELinux are true where the kernel enforces them.
	Seccomp, AppArmor, SELinux bool
	// LacksX32 is true where the kernel is known to have no x32 system calls,
	// so that the default seccomp profile need not mention them.
	LacksX32 bool
	// AppArmorDefault is the name of the loaded default profile, from
	// LoadAppArmor. Where it is "", a container that asks for no profile runs
	// unconfined, and one that asks for RuntimeDefault is refused.
	AppArmorDefault string
	// SwapAccounting is true where a cgroup can limit memory and swap together.
	SwapAccounting bool
	// RecursiveReadOnly is true where mount_setattr(2) exists (Linux 5.12).
	RecursiveReadOnly bool
	// OOMScoreAdjMin is the lowest oom_score_adj that a child may be given.
	OOMScoreAdjMin int
	// Rlimits are the resource limits that this process holds; requests above
	// the hard limit are clamped to it.
	Rlimits []specs.POSIXRlimit
	// RaiseRlimits is true where CAP_SYS_RESOURCE lifts the hard limits.
	RaiseRlimits bool
	// Devices are all device nodes of the host, for privileged containers.
	Devices []specs.LinuxDevice
}

// HostNamespace as a value in Namespaces means the node's own namespace.
const HostNamespace = "host"

// Namespaces names the namespaces of a container. Every field is the path of
// a namespace to join, "" for a new one, or HostNamespace for the node's.
type Namespaces struct {
	Net, IPC, UTS, PID, User string
}

// User is a user as resolved inside a root filesystem.
type User struct {
	UID, GID uint32
	// Additional are the supplementary groups, without duplicates.
	Additional []uint32
	// NumberIsName says that the image has a group of another ID whose name is
	// the number of the primary group.
	NumberIsName bool
	// Username is the name that was asked for, "" when it was a number.
	Username string
	// Home is the home directory, "/" when the user is not in /etc/passwd.
	Home string
}

// Mount is a bind mount that the caller has resolved.
type Mount struct {
	// Source is an absolute path on the host.
	Source string
	// Destination is an absolute path in the container.
	Destination string
	// ReadOnly makes the mount itself read-only.
	ReadOnly bool
	// Relabel gives the source the container's SELinux mount label.
	Relabel bool
	// Options are added to the mount's own, such as "noexec".
	Options []string
}

// Submount is a mount below the source of a requested mount.
type Submount struct {
	// Mount is the index of the requested mount in Config.Mounts.
	Mount int
	// Path is where it is mounted, relative to the requested mount.
	Path string
	// Source is an absolute path on the host.
	Source string
}

// ContainerInput is everything that decides a container's specification.
type ContainerInput struct {
	// ID and PodID are the container's and its pod's identifiers.
	ID, PodID string
	// Config and Pod are the requests as they came in by CRI.
	Config *runtimeapi.ContainerConfig
	Pod    *runtimeapi.PodSandboxConfig
	// Image is the run-time part of the image's configuration.
	Image ocispec.ImageConfig
	// Host holds the facts about the node.
	Host Host
	// Features is what the OCI runtime says of itself. Optional features
	// (recursive read-only mounts, mapped mounts) are refused unless it
	// lists them.
	Features *features.Features
	// RootfsPath is the absolute path of the mounted root filesystem.
	RootfsPath string
	// User is the result of ResolveUser.
	User User
	// Namespaces says which namespaces the container joins or makes.
	Namespaces Namespaces
	// CgroupsPath is the path in the form that the cgroup driver wants.
	CgroupsPath string
	// Mounts are the mounts that the runtime itself adds: /etc/hosts,
	// /etc/hostname, /etc/resolv.conf, /dev/shm. A mount of the same
	// destination in Config wins.
	Mounts []Mount
	// MountSources holds the resolved host path for each entry of
	// Config.Mounts, as PrepareMounts returns it; the caller fills in those
	// of image mounts. Nil means that the host paths are used as they stand.
	MountSources []string
	// MappedSources says that MountSources show the owners of files as the
	// ID mappings of Config.Mounts have it, so the OCI runtime need not.
	MappedSources bool
	// Submounts are what is mounted below MountSources, for an OCI runtime
	// that does not bind it with them.
	Submounts []Submount
	// Devices are the device nodes for Config.Devices, from ResolveDevices.
	Devices []specs.LinuxDevice
	// DeviceRules are the cgroup rules that go with Devices.
	DeviceRules []specs.LinuxDeviceCgroup
	// SeccompProfile is the text of the Localhost profile, from ReadSeccomp.
	SeccompProfile []byte
	// ProcessLabel and MountLabel are the SELinux labels, from SELinuxLabels.
	ProcessLabel, MountLabel string
	// Rlimits are the configured default limits of containers; they are
	// clamped to what Host allows.
	Rlimits []specs.POSIXRlimit
	// Sysctls are those of the pod that its pinned namespaces do not carry
	// yet.
	Sysctls map[string]string
	// CDI injects the named devices; nil refuses them.
	CDI func(s *specs.Spec, devices []string) error
	// Edits run last, in order, on the finished specification: the single
	// place for NRI and the like.
	Edits []func(*specs.Spec) error
}
