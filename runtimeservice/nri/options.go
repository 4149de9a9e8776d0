package nri

import (
	"context"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Options say how plugins are reached. The zero value of a field but Enable
// means its default.
type Options struct {
	// Enable switches NRI on.
	Enable bool
	// Socket is where plugins connect; /var/run/nri/nri.sock by default.
	// Whoever may connect can change any container, so its directory is made
	// for root only.
	Socket string
	// PluginPath holds executables named NN-name that are started with the
	// daemon; /opt/nri/plugins by default.
	PluginPath string
	// PluginConfigPath holds their configuration files; /etc/nri/conf.d by
	// default.
	PluginConfigPath string
	// RegistrationTimeout bounds the time from a plugin's connection to its
	// registration; 5 seconds by default.
	RegistrationTimeout time.Duration
	// RequestTimeout bounds each call of a plugin; 10 seconds by default. A
	// change that a plugin wants for a container may take half of it.
	RequestTimeout time.Duration
}

func (o Options) withDefaults() Options {
	set := func(s *string, def string) {
		if *s == "" {
			*s = def
		}
	}
	set(&o.Socket, "/var/run/nri/nri.sock")
	set(&o.PluginPath, "/opt/nri/plugins")
	set(&o.PluginConfigPath, "/etc/nri/conf.d")
	if o.RegistrationTimeout == 0 {
		o.RegistrationTimeout = 5 * time.Second
	}
	if o.RequestTimeout == 0 {
		o.RequestTimeout = 10 * time.Second
	}
	return o
}

// Update is a change of a container's limits that a plugin wants.
type Update struct {
	// ID is the container's.
	ID string
	// Resources are the limits that CRI knows; zero fields stay as they are.
	Resources *runtimeapi.LinuxContainerResources
	// Direct are others, for the cgroup: pids, and of memory the reservation
	// and the swappiness.
	Direct *specs.LinuxResources
}

// Runtime is what plugins ask for outside of the container at hand. All
// functions are safe for concurrent use.
type Runtime struct {
	// Update changes the limits of a container that is created or runs, or is
	// about to be created.
	Update func(context.Context, Update) error
	// Evict ends a container. It returns at once.
	Evict func(ctx context.Context, id, reason string)
	// InjectCDI injects devices by name; nil refuses them.
	InjectCDI func(s *specs.Spec, devices []string) error
}

// Pod is what plugins are told of a pod.
type Pod struct {
	ID      string
	Config  *runtimeapi.PodSandboxConfig
	Handler string // of the RuntimeClass
	IPs     []string
	// CgroupParent is the cgroup of the pod's containers.
	CgroupParent string
	// Namespaces are those that the pod's containers join.
	Namespaces []specs.LinuxNamespace
	// Overhead and Resources are those of the whole pod, as last set.
	Overhead, Resources *runtimeapi.LinuxContainerResources
}

// Container is what plugins are told of a container.
type Container struct {
	ID, PodID string
	Config    *runtimeapi.ContainerConfig
	Spec      *specs.Spec
	Image     Image
	Created   time.Time
	// Started is zero and Pid 0 until the container runs.
	Started time.Time
	Pid     int
}

// Image is the image of a container: its name as asked for, and the digests of
// its manifest, "" where that is not known, and of its config.
type Image struct{ Name, Digest, ConfigDigest string }

// Exit is how a container ended.
type Exit struct {
	At              time.Time
	Code            int
	Reason, Message string
}

// State is what lives when the daemon starts.
type State struct {
	Pods       []Pod       // ready ones
	Containers []Container // of these pods, created or running
}
