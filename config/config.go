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

// DefaultPath is the file that is read when no other is named. It may be absent.
const DefaultPath = "/etc/mica/config.toml"

// Config is everything that can be set. The zero value of a field is the default
// of the package that it belongs to, except for what Default fills in.
type Config struct {
	// DataRoot holds images, layers and records, and outlives a reboot.
	DataRoot string
	// StateDir holds sockets, namespaces and bundles, and should be on a tmpfs.
	StateDir string
	// DefaultRuntimes names entries of Runtimes in order of preference: the first
	// that can run a container on this host serves pods without a RuntimeClass.
	DefaultRuntimes []string

	Log     Log
	Metrics Metrics
	CRI     cri.Options `toml:"cri"`
	Images  imageservice.Options
	Network network.Options
	Pods    runtimeservice.Options
	Cgroups cgroup.Options
	Keeper  keeper.Options
	// NRI lets plugins take part in the life of pods and containers.
	NRI nri.Options `toml:"nri"`
	// CDI says where devices for containers are described.
	CDI cdi.Options `toml:"cdi"`
	// Hooks adds OCI hooks of the node's to containers.
	Hooks hooks.Options
	// Runtimes are the OCI runtimes by RuntimeClass handler name.
	Runtimes map[string]oci.Handler
}

// Log says what the daemon writes to standard error.
type Log struct {
	// Level is klog's verbosity: 0 is errors and the daemon's own life, 2 adds calls
	// that change something, 4 adds calls that only read, 5 and more are for debugging.
	Level int
	// Format is "text" or "json".
	Format string
}

// Metrics says where Prometheus metrics are served.
type Metrics struct {
	// Address is the IP:port of a plain HTTP server with /metrics; "" is none.
	Address string
}

// Default returns the configuration of an empty file.
func Default() Config {
	return Config{
		DataRoot:        "/var/lib/mica",
		StateDir:        "/run/mica",
		DefaultRuntimes: []string{"crun", "runc"},
		Log:             Log{Level: 2, Format: "text"},
		Network:         network.Options{ConfDir: "/etc/cni/net.d"},
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

// DefaultFile returns a configuration file that says what Default says: every key,
// commented out where it is optional, with its meaning.
func DefaultFile() []byte { return slices.Clone(defaultFile) }

// Resolved returns the configuration with every path filled in that follows from
// DataRoot and StateDir, ready to be handed to the packages.
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

// Overlay returns the options of the layer store, all of which follow from DataRoot.
func (c Config) Overlay() overlay.Options { return overlay.Options{Root: c.DataRoot} }

// AdminSocket returns the path of the daemon's own control socket.
func (c Config) AdminSocket() string { return filepath.Join(c.StateDir, "admin.sock") }
