package config

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/micarun/mica/internal/unixsock"
	"github.com/micarun/mica/runtimeservice/cgroup"
)

// Validate reports every invalid setting without looking at the host. Each line of the error begins
// with a key.
func (c Config) Validate() error {
	return errors.Join(
		absolute("data_root", c.DataRoot),
		absolute("state_dir", c.StateDir),
		c.validateRuntimes(),
		c.Log.validate(),
		c.Metrics.validate(),
		under("cri", c.Resolved().CRI.Validate()),
		c.validateSockets(),
		c.validateCgroups(),
		absolute("network.conf_dir", c.Network.ConfDir),
		under("images", c.Images.Validate()),
		optionalAbsolute("keeper.binary", c.Keeper.Binary),
		optionalAbsolute("pods.init_binary", c.Pods.InitBinary),
		under("pods", c.Pods.Validate()),
		c.validateCriu(),
		optionalAbsolute("nri.socket", c.NRI.Socket),
		optionalAbsolute("nri.plugin_path", c.NRI.PluginPath),
		optionalAbsolute("nri.plugin_config_path", c.NRI.PluginConfigPath),
		eachAbsolute("cdi.dirs", c.CDI.Dirs),
		eachAbsolute("hooks.dirs", c.Hooks.Dirs),
	)
}

// maxSocketPath is the size of sun_path in unix(7), less its terminating zero.
const maxSocketPath = 107

// validateSockets rejects paths that are too long for a socket. The sockets of the keeper and of
// consoles are bound by short names, so a long state directory does not matter to them.
func (c Config) validateSockets() error {
	var admin, plugins error
	if socket := c.AdminSocket(); len(socket) > unixsock.MaxPath {
		admin = fmt.Errorf("state_dir: its socket %q is longer than %d bytes", socket, unixsock.MaxPath)
	}
	if socket := c.NRI.Socket; len(socket) > maxSocketPath {
		plugins = fmt.Errorf("nri.socket: %q is longer than %d bytes", socket, maxSocketPath)
	}
	return errors.Join(admin, plugins)
}

func (c Config) validateRuntimes() error {
	var problems []error
	if len(c.DefaultRuntimes) == 0 {
		problems = append(problems, errors.New("default_runtimes: names no runtime"))
	}
	for _, name := range c.DefaultRuntimes {
		if _, ok := c.Runtimes[name]; !ok {
			problems = append(problems, fmt.Errorf("default_runtimes: %q is not in [runtimes]", name))
		}
	}
	for name, h := range c.Runtimes {
		key := "runtimes." + name
		if name == "" || strings.ContainsAny(name, "/ ") {
			problems = append(problems, fmt.Errorf("%s: %q is not a valid handler name", key, name))
		}
		if h.Path == "" {
			problems = append(problems, fmt.Errorf("%s.path: is empty", key))
		}
		problems = append(problems, oneOf(key+".type", h.Type, "", "runc", "crun"))
	}
	return errors.Join(problems...)
}

func (c Config) validateCriu() error {
	if name := c.Pods.Criu; name != "" && filepath.Base(name) != "criu" {
		return fmt.Errorf("pods.criu: %q is not named criu, the name that OCI runtimes look for", name)
	}
	return nil
}

func (c Config) validateCgroups() error {
	return oneOf("cgroups.driver", string(c.Cgroups.Driver), "", string(cgroup.Cgroupfs), string(cgroup.Systemd))
}

func (l Log) validate() error {
	var level error
	if l.Level < 0 || l.Level > 10 {
		level = fmt.Errorf("log.level: %d is not within 0 and 10", l.Level)
	}
	return errors.Join(level, oneOf("log.format", l.Format, "text", "json"))
}

func (m Metrics) validate() error {
	if m.Address == "" {
		return nil
	}
	if _, err := netip.ParseAddrPort(m.Address); err != nil {
		return fmt.Errorf("metrics.address: %q is not IP:port", m.Address)
	}
	return nil
}

func absolute(key, path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%s: %q is not an absolute path", key, path)
	}
	return nil
}

func eachAbsolute(key string, paths []string) error {
	var problems []error
	for _, path := range paths {
		problems = append(problems, absolute(key, path))
	}
	return errors.Join(problems...)
}

func optionalAbsolute(key, path string) error {
	if path == "" {
		return nil
	}
	return absolute(key, path)
}

func oneOf(key, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("%s: %q is not one of %q", key, value, allowed)
}

// under prefixes the keys in every line of err with a table's name.
func under(table string, err error) error {
	if err == nil {
		return nil
	}
	lines := strings.Split(err.Error(), "\n")
	for i, line := range lines {
		lines[i] = table + "." + line
	}
	return errors.New(strings.Join(lines, "\n"))
}
