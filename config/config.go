package config

import (
	_ "embed"
	"maps"
	"path/filepath"
	"slices"

	"github.com/micarun/mica/cri"
	"github.com/micarun/mica/imageservice"
	"github.com/micarun/mica/network"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice"
	"github.com/micarun/mica/runtimeservice/cdi"
	"github.com/micarun/mica/runtimeservice/cgroup"
	"github.com/micarun/mica/runtimeservice/hooks"
	"github.com/micarun/mica/runtimeservice/keeper"
	"github.com/micarun/mica/runtimeservice/nri"
	"github.com/micarun/mica/runtimeservice/oci"
)

// DefaultPath is the configuration file that is read if no other is given. It may be missing.
const DefaultPath = "/etc/mica/config.toml"

// Config holds all settings. The zero value of a field means the default of its package, except for
// the fields that Default sets.
type Config struct {
	// DataRoot is the directory of images, layers and records. It must survive a reboot.
	DataRoot string
	// StateDir is the directory of sockets, namespaces and bundles. It should be on a tmpfs.
	StateDir string
	// DefaultRuntimes lists entries of Runtimes in order of preference. The first that can run a
	// container on this host serves pods without a RuntimeClass.
	DefaultRuntimes []string

	Log     Log
	Metrics Metrics
	CRI     cri.Options `toml:"cri"`
	Images  imageservice.Options
	Network network.Options
	Pods    runtimeservice.Options
	Cgroups cgroup.Options
	Keeper  keeper.Options
	// NRI configures plugins of the Node Resource Interface, which may change pods and containers.
	NRI nri.Options `toml:"nri"`
	// CDI says where device specifications are.
	CDI cdi.Options `toml:"cdi"`
	// Hooks configures OCI hooks that the node adds to containers.
	Hooks hooks.Options
	// Runtimes are the OCI runtimes by the handler name of their RuntimeClass.
	Runtimes map[string]oci.Handler
}

// Log configures the daemon's log on standard error.
type Log struct {
	// Level is klog's verbosity: 0 logs errors and the daemon's own events, 2 adds calls that
	// change something, 4 adds calls that only read, 5 and more is for debugging.
	Level int
	// Format is "text" or "json".
	Format string
}

// Metrics configures the endpoint for Prometheus.
type Metrics struct {
	// Address is the IP:port of a plain HTTP server with /metrics; "" disables it.
	Address string
}

// Default returns the configuration of an empty file.
func Default() Config {
	return Config{
		DataRoot:        "/var/lib/mica",
		StateDir:        "/run/mica",
		DefaultRuntimes: []string{"crun", "runc"},
		Log:             Log{Level: 2, Format: "text"},
		Network:         network.Options{ConfDir: "/etc/cni/net.d", InProcess: true},
		NRI:             nri.Options{Enable: true},
		Hooks:           hooks.Options{Enable: true},
		Runtimes: map[string]oci.Handler{
			"crun": {Path: "crun", Type: "crun"},
			"runc": {Path: "runc", Type: "runc"},
		},
	}
}

//go:embed default.toml
var defaultFile []byte

// DefaultFile returns a documented configuration file with every key, commented out and with its
// default.
func DefaultFile() []byte { return slices.Clone(defaultFile) }

// Resolved returns the configuration with the paths that follow from DataRoot and StateDir, ready
// for the packages to use.
func (c Config) Resolved() Config {
	if c.CRI.Socket == "" {
		c.CRI.Socket = filepath.Join(c.StateDir, "mica.sock")
	}
	c.Images.Root = c.DataRoot
	c.Pods.DataDir, c.Pods.StateDir = c.DataRoot, c.StateDir
	c.Keeper.Dir = filepath.Join(c.StateDir, "keeper")
	c.Network.CacheDir = filepath.Join(c.DataRoot, "network")
	if c.Network.Default != nil {
		n := *c.Network.Default
		n.DataDir = filepath.Join(c.DataRoot, "network", "leases")
		c.Network.Default = &n
	}
	c.Runtimes = maps.Clone(c.Runtimes)
	c.Images.RuntimeHandlers = append(slices.Sorted(maps.Keys(c.Runtimes)), "")
	for name, h := range c.Runtimes {
		h.Name = name
		h.Root = filepath.Join(c.StateDir, "runtimes", name)
		c.Runtimes[name] = h
	}
	return c
}

// Overlay returns the options of the layer store, which all follow from DataRoot.
func (c Config) Overlay() overlay.Options { return overlay.Options{Root: c.DataRoot} }

// AdminSocket returns the path of the daemon's admin socket.
func (c Config) AdminSocket() string { return filepath.Join(c.StateDir, "admin.sock") }
