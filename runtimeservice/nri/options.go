package nri

import (
	"context"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Options configures plugins. A zero value in a field other than Enable means the field's default.
type Options struct {
	// Enable switches NRI on.
	Enable bool
	// Socket is the path where plugins connect; /var/run/nri/nri.sock by default. A plugin can
	// change any container, so the socket's directory is made accessible to root only.
	Socket string
	// PluginPath is the directory of executables, named NN-name, that the daemon starts;
	// /opt/nri/plugins by default.
	PluginPath string
	// PluginConfigPath is the directory of these plugins' configuration files; /etc/nri/conf.d by
	// default.
	PluginConfigPath string
	// RegistrationTimeout bounds the time from a plugin's connection to its
	// registration; 5 seconds by default.
	RegistrationTimeout time.Duration
	// RequestTimeout bounds each call of a plugin; 10 seconds by default. A container update
	// requested by a plugin may take half of it.
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

// Update is a change of a container's limits that a plugin requests.
type Update struct {
	// ID is the container's ID.
	ID string
	// Resources are the limits that CRI knows; zero fields stay as they are.
	Resources *runtimeapi.LinuxContainerResources
	// Direct are the limits that CRI does not have and that are written to the cgroup: pids, memory
	// reservation and swappiness.
	Direct *specs.LinuxResources
}

// Runtime carries out the requests of plugins that go beyond the container of an event. All
// functions must be safe for concurrent use.
type Runtime struct {
	// Update changes the limits of a container that runs, is created, or is about to be created.
	Update func(context.Context, Update) error
	// Evict ends a container in the background.
	Evict func(ctx context.Context, id, reason string)
	// InjectCDI injects devices by name; nil means that such requests are refused.
	InjectCDI func(s *specs.Spec, devices []string) error
}

// Pod describes a pod to plugins.
type Pod struct {
	ID      string
	Config  *runtimeapi.PodSandboxConfig
	Handler string // the RuntimeClass's handler
	IPs     []string
	// CgroupParent is the cgroup of the pod's containers.
	CgroupParent string
	// Namespaces are the namespaces that the pod's containers join.
	Namespaces []specs.LinuxNamespace
	// Overhead and Resources are the values of the whole pod, as last set.
	Overhead, Resources *runtimeapi.LinuxContainerResources
}

// Container describes a container to plugins.
type Container struct {
	ID, PodID string
	Config    *runtimeapi.ContainerConfig
	Spec      *specs.Spec
	Image     Image
	Created   time.Time
	// Started is zero and Pid 0 before the container runs.
	Started time.Time
	Pid     int
}

// Image is the image of a container: its requested name and the digests of its manifest ("" if
// unknown) and its config.
type Image struct{ Name, Digest, ConfigDigest string }

// Exit describes how a container ended.
type Exit struct {
	At              time.Time
	Code            int
	Reason, Message string
}

// State is the pods and containers that exist when the daemon starts.
type State struct {
	Pods       []Pod       // ready pods
	Containers []Container // of these pods, created or running
}
