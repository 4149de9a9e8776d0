package network

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// statusLife is how long the answer of the plugins to STATUS holds.
const statusLife = 5 * time.Second

// statusCache is the last answer of the plugins to STATUS. The zero value is
// none.
type statusCache struct {
	// mu guards what follows, and is held while plugins run, so that one call
	// asks them for all. That time is bounded by Options.StatusTimeout.
	mu   sync.Mutex
	conf *conf
	at   time.Time
	err  error
}

// Info is what a node's verbose status says about the network.
type Info struct {
	// Config is the loaded configuration as JSON, in the shape that
	// containerd gives it (cniconfig).
	Config json.RawMessage
	// LastLoadStatus is "OK" or the reason why no configuration is loaded
	// or why files were passed over.
	LastLoadStatus string
}

// Status returns nil when pods can be attached, and otherwise the reason, as
// errdefs.ErrUnavailable: no valid configuration, a plugin without executable
// (ErrPluginMissing too), or, from CNI 1.1.0 on, a plugin that says so. The
// plugins are asked at most once in five seconds.
func (n *Network) Status(ctx context.Context) error {
	c := n.current()
	list, err := c.ready()
	if err != nil {
		return err
	}
	if _, err := n.missing(list); err != nil {
		return fmt.Errorf("network %s not ready: %w: %w", list.Name, err, errdefs.ErrUnavailable)
	}
	if err := n.pluginStatus(ctx, c); err != nil {
		return fmt.Errorf("network %s not ready: %w: %w", list.Name, err, errdefs.ErrUnavailable)
	}
	return nil
}

func (n *Network) pluginStatus(ctx context.Context, c *conf) error {
	s := &n.status
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conf == c && time.Since(s.at) < statusLife {
		return s.err
	}
	ctx, cancel := context.WithTimeout(ctx, n.opts.StatusTimeout)
	defer cancel()
	err := plainError(n.cni.GetStatusNetworkList(ctx, c.list))
	if ctx.Err() == nil || err == nil { // not what only a hasty caller saw
		s.conf, s.at, s.err = c, time.Now(), err
	}
	return err
}

// Info returns the loaded configuration and how loading it went. It does not
// block.
func (n *Network) Info() Info {
	c := n.current()
	info := Info{LastLoadStatus: "OK"}
	if c.err != nil {
		info.LastLoadStatus = c.err.Error()
	} else if len(c.broken) > 0 {
		info.LastLoadStatus = fmt.Sprintf("OK, but passed over: %v", c.broken)
	}
	data, err := json.Marshal(n.verboseConf(c))
	if err != nil { // the configuration was JSON: cannot be
		data, _ = json.Marshal(err.Error())
	}
	info.Config = data
	return info
}

// verboseConf and what it consists of have the field names of containerd's
// status, which tools read.
type verboseConf struct {
	PluginDirs       []string
	PluginConfDir    string
	PluginMaxConfNum int
	Prefix           string
	Networks         []verboseNetwork
}

type verboseNetwork struct {
	Config verboseList
	IFName string
}

type verboseList struct {
	Name, CNIVersion string
	Plugins          []verbosePlugin
	Source           string
}

type verbosePlugin struct {
	Network *types.PluginConf
	Source  string
}

func (n *Network) verboseConf(c *conf) verboseConf {
	v := verboseConf{
		PluginDirs: n.opts.BinDirs, PluginConfDir: n.opts.ConfDir, PluginMaxConfNum: 1, Prefix: "eth",
		Networks: []verboseNetwork{},
	}
	if c.list != nil {
		v.Networks = append(v.Networks, verboseNetwork{Config: verboseListOf(c.list), IFName: podInterface})
	}
	return v
}

func verboseListOf(list *libcni.NetworkConfigList) verboseList {
	v := verboseList{Name: list.Name, CNIVersion: list.CNIVersion, Source: string(list.Bytes)}
	for _, p := range list.Plugins {
		v.Plugins = append(v.Plugins, verbosePlugin{Network: p.Network, Source: string(p.Bytes)})
	}
	return v
}

// Strays is [Options.Strays] of this network.
func (n *Network) Strays(live []string) ([]Stray, error) { return n.opts.Strays(live) }
