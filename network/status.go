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

// statusLife is how long a STATUS result of the plugins is cached.
const statusLife = 5 * time.Second

// statusCache caches the plugins' last STATUS result. The zero value is empty.
type statusCache struct {
	// mu guards the fields below. It is held while plugins run, so that concurrent callers share
	// one STATUS; Options.StatusTimeout bounds that time.
	mu   sync.Mutex
	conf *conf
	at   time.Time
	err  error
}

// Info is the network part of the node's verbose status.
type Info struct {
	// Config is the loaded configuration as JSON, in the shape of containerd's cniconfig.
	Config json.RawMessage
	// LastLoadStatus is "OK", the reason why no configuration is loaded, or the files that were
	// ignored and why.
	LastLoadStatus string
}

// Status returns nil if pods can be attached. Otherwise the error is errdefs.ErrUnavailable and has
// the reason: no valid configuration, a plugin without an executable (also ErrPluginMissing), or,
// from CNI 1.1.0 on, a plugin that reports it. Plugins are called at most once in five seconds.
func (n *Network) Status(ctx context.Context) error {
	c := n.current()
	list, err := c.ready()
	if err != nil {
		return err
	}
	if _, err := n.pluginsOf(list).missing(list); err != nil {
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
	err := plainError(n.pluginsOf(c.list).cni.GetStatusNetworkList(ctx, c.list))
	if ctx.Err() == nil || err == nil { // do not cache the caller's own cancellation
		s.conf, s.at, s.err = c, time.Now(), err
	}
	return err
}

// Info returns the loaded configuration and the outcome of loading it. It does not block.
func (n *Network) Info() Info {
	c := n.current()
	info := Info{LastLoadStatus: "OK"}
	if c.err != nil {
		info.LastLoadStatus = c.err.Error()
	} else if len(c.broken) > 0 {
		info.LastLoadStatus = fmt.Sprintf("OK, but ignored: %v", c.broken)
	}
	data, err := json.Marshal(n.verboseConf(c))
	if err != nil { // impossible: the configuration was JSON
		data, _ = json.Marshal(err.Error())
	}
	info.Config = data
	return info
}

// verboseConf and its parts have the field names of containerd's status, which tools read.
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

// Leftovers calls [Options.Leftovers] with this network's options.
func (n *Network) Leftovers(live []string) ([]Leftover, error) { return n.opts.Leftovers(live) }
