package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"k8s.io/klog/v2"
)

// conf is a loaded configuration. It is immutable.
type conf struct {
	// list is the network. If it is nil, err says why. Its Bytes hold all plugins, including those
	// read from separate files.
	list *libcni.NetworkConfigList
	err  error
	// source is the file that the network was read from; "" for the default network.
	source string
	// broken has one error for each invalid file, which names the file.
	broken []error
}

// confExtensions are the extensions of network configuration files.
var confExtensions = []string{".conf", ".conflist", ".json"}

// loadConf reads the network from the lexically first valid file in dir. If dir has no such files
// at all, it uses the default network, if there is one.
func loadConf(dir string, def *DefaultNetwork) *conf {
	files, err := libcni.ConfFiles(dir, confExtensions)
	if err != nil {
		return &conf{err: fmt.Errorf("read network configurations: %w", err)}
	}
	slices.Sort(files)
	c := &conf{}
	for _, file := range files {
		list, err := loadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since it was listed
		}
		if err == nil {
			err = c.use(list, file)
		}
		if err == nil {
			return c
		}
		c.broken = append(c.broken, fmt.Errorf("%s: %w", file, err))
	}
	switch {
	case len(c.broken) > 0:
		c.err = fmt.Errorf("no valid network configuration: %w", errors.Join(c.broken...))
	case def == nil:
		c.err = fmt.Errorf("no network configuration in %s", dir)
	default:
		c.err = c.useDefault(*def)
	}
	return c
}

func (c *conf) useDefault(def DefaultNetwork) error {
	data, err := def.conflist()
	if err != nil {
		return fmt.Errorf("generate default network: %w", err)
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return fmt.Errorf("generate default network: %w", err)
	}
	return c.use(list, "")
}

// use validates what libcni does not, and makes list the network.
func (c *conf) use(list *libcni.NetworkConfigList, source string) error {
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return fmt.Errorf("network name: %w", err)
	}
	if len(list.Plugins) == 0 {
		return errors.New("no plugins")
	}
	for _, p := range list.Plugins {
		if p.Network.Type == "" || strings.ContainsRune(p.Network.Type, os.PathSeparator) {
			return fmt.Errorf("plugin type %q is not a file name", p.Network.Type)
		}
	}
	if list.CNIVersion == "" {
		list.CNIVersion = "0.1.0" // the first version, which had no such key
	}
	newer, err := version.GreaterThan(list.CNIVersion, version.Current())
	if err != nil {
		return fmt.Errorf("cniVersion: %w", err)
	}
	if newer {
		return fmt.Errorf("cniVersion %s is newer than %s", list.CNIVersion, version.Current())
	}
	if list.Bytes, err = inline(list); err != nil {
		return err
	}
	c.list, c.source = list, source
	return nil
}

// loadFile reads a file with one plugin (*.conf, *.json) or a list of plugins. The key "plugins"
// marks a list, whatever the extension, because tools write both under all three extensions. A
// *.conflist may have a directory of plugins instead.
func loadFile(file string) (*libcni.NetworkConfigList, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(data, &keys); err != nil {
		return nil, err
	}
	if _, ok := keys["plugins"]; ok || filepath.Ext(file) == ".conflist" {
		return libcni.NetworkConfFromFile(file)
	}
	plugin, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	// libcni's function that makes a list of one plugin is deprecated.
	one, err := json.Marshal(map[string]any{
		"name":       plugin.Network.Name,
		"cniVersion": plugin.Network.CNIVersion,
		"plugins":    []json.RawMessage{data},
	})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(one)
}

// inline returns list as JSON that refers to no other file.
func inline(list *libcni.NetworkConfigList) ([]byte, error) {
	whole := map[string]any{}
	if err := json.Unmarshal(list.Bytes, &whole); err != nil {
		return nil, err
	}
	plugins := make([]json.RawMessage, 0, len(list.Plugins))
	for _, p := range list.Plugins {
		plugins = append(plugins, p.Bytes)
	}
	whole["plugins"] = plugins
	whole["cniVersion"] = list.CNIVersion
	whole["loadOnlyInlinedPlugins"] = true
	delete(whole, "cniVersions")
	return json.Marshal(whole)
}

// ready returns the network. If there is none, the error has the reason and is
// errdefs.ErrUnavailable.
func (c *conf) ready() (*libcni.NetworkConfigList, error) {
	if c.err != nil {
		return nil, fmt.Errorf("network not ready: %w: %w", c.err, errdefs.ErrUnavailable)
	}
	return c.list, nil
}

// reload loads the configuration and logs changes.
func (n *Network) reload(ctx context.Context) {
	c := loadConf(n.opts.ConfDir, n.opts.Default)
	n.mu.Lock()
	before := n.conf
	n.conf = c
	n.mu.Unlock()
	n.watch.follow(c)

	log := klog.FromContext(ctx)
	for _, err := range c.broken {
		if n.once(err.Error()) {
			log.Error(err, "Ignoring invalid network configuration")
		}
	}
	switch {
	case before != nil && before.err == nil && c.err == nil && bytes.Equal(before.list.Bytes, c.list.Bytes):
	case c.err == nil:
		log.Info("Network configuration loaded", "network", c.list.Name, "cniVersion", c.list.CNIVersion, "source", c.where(), "plugins", n.describePlugins(c.list))
	case before == nil || before.err == nil || before.err.Error() != c.err.Error():
		log.Info("Network not ready", "reason", c.err.Error())
	}
}

func (c *conf) where() string {
	if c.source == "" {
		return "default"
	}
	return c.source
}
