package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"

	"github.com/micarun/mica/network/builtin"
)

// inProcess is the invoke.Exec that runs the built-in plugins in this process. Its Exec runs the
// others.
type inProcess struct {
	invoke.Exec
	plugins *builtin.Plugins
}

// builtinPrefix begins the path of a built-in plugin. No directory of executables has it.
const builtinPrefix = "builtin:"

func (e *inProcess) FindInPath(plugin string, dirs []string) (string, error) {
	if builtin.Has(plugin) {
		return builtinPrefix + plugin, nil
	}
	return e.Exec.FindInPath(plugin, dirs)
}

// ExecPlugin runs one plugin and returns its result. Every error is a *pluginError.
func (e *inProcess) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	plugin, ok := strings.CutPrefix(path, builtinPrefix)
	if !ok {
		return e.Exec.ExecPlugin(ctx, path, stdin, environ)
	}
	env := map[string]string{}
	for _, kv := range environ {
		if name, value, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(name, "CNI_") {
			env[name] = value
		}
	}
	out, err := e.plugins.Run(ctx, builtin.Call{
		Plugin: plugin, Command: env["CNI_COMMAND"], ContainerID: env["CNI_CONTAINERID"], NetNS: env["CNI_NETNS"],
		IfName: env["CNI_IFNAME"], Args: env["CNI_ARGS"], Config: stdin,
	})
	if err != nil {
		return nil, &pluginError{plugin: plugin, command: env["CNI_COMMAND"], err: err}
	}
	return out, nil
}

// plugins runs the plugins of one configuration.
type plugins struct {
	cni     *libcni.CNIConfig
	exec    invoke.Exec // for plugins that are executed
	binDirs []string
	// inProcess says that built-in plugins run in this process.
	inProcess bool
}

// pluginsOf returns what runs the plugins of list.
func (n *Network) pluginsOf(list *libcni.NetworkConfigList) plugins {
	return n.pluginsBy(n.whyExecuted(list) == nil)
}

// pluginsToDetach returns what runs DEL for a pod. Built-in plugins also detach pods of executables, but
// executables fail for pods of built-in plugins, because they miss their rules. So a pod that may be one
// of those is detached in this process, even if that is disabled by now.
func (n *Network) pluginsToDetach(list *libcni.NetworkConfigList, rec record) plugins {
	if rec.InProcess {
		return n.pluginsBy(true)
	}
	networks, err := n.builtin.Networks()
	if err == nil && slices.Contains(networks, list.Name) && builtin.Supports(list) == nil {
		return n.pluginsBy(true)
	}
	return n.pluginsOf(list)
}

func (n *Network) pluginsBy(inProcess bool) plugins {
	p := plugins{cni: n.cni, exec: n.opts.Exec, binDirs: n.opts.BinDirs, inProcess: inProcess}
	if inProcess {
		p.cni = n.mixed
	}
	return p
}

// untilSuccess returns a function that calls f until it has succeeded once. It may be called
// concurrently.
func untilSuccess(f func() error) func() error {
	var mu sync.Mutex
	succeeded := false
	return func() error {
		mu.Lock()
		defer mu.Unlock()
		if succeeded {
			return nil
		}
		err := f()
		succeeded = err == nil
		return err
	}
}

// errDisabled is the reason for executing plugins without Options.InProcess.
var errDisabled = errors.New("running plugins in process is disabled")

// whyExecuted returns nil if built-in plugins of list run in this process, or else the reason.
func (n *Network) whyExecuted(list *libcni.NetworkConfigList) error {
	if !n.opts.InProcess {
		return errDisabled
	}
	if err := builtin.Supports(list); err != nil {
		return err
	}
	return n.probe()
}

// describePlugins describes in the log how the plugins of list run.
func (n *Network) describePlugins(list *libcni.NetworkConfigList) string {
	if err := n.whyExecuted(list); err != nil {
		return "executed: " + err.Error()
	}
	return "in process"
}

// missing returns the plugins of list that can run. The error wraps ErrPluginMissing for each
// executable that does not exist, IPAM plugins included.
func (p plugins) missing(list *libcni.NetworkConfigList) (present []*libcni.PluginConfig, err error) {
	var errs []error
	for _, plugin := range list.Plugins {
		if p.inProcess && builtin.Has(plugin.Network.Type) {
			present = append(present, plugin)
			continue
		}
		_, err := p.exec.FindInPath(plugin.Network.Type, p.binDirs)
		if ipam := plugin.Network.IPAM.Type; err == nil && ipam != "" {
			_, err = p.exec.FindInPath(ipam, p.binDirs)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		present = append(present, plugin)
	}
	return present, errors.Join(errs...)
}

// releaseRules removes the packet filter rules that executables may have made for a pod that is
// detached in this process.
func (n *Network) releaseRules(ctx context.Context, p plugins, list *libcni.NetworkConfigList, rec record) error {
	if !p.inProcess || rec.InProcess {
		return nil
	}
	alive := func(id string) bool { return id != rec.PodID }
	return errors.Join(removeRules(ctx, []string{list.Name}, alive), builtin.RemoveExecutablesRules(list.Name, rec.PodID))
}

// sweepTables removes host ports of dead pods, and what nothing needs any longer: tables, and
// masquerading of ranges. No ADD runs meanwhile, which could need what is removed.
func (n *Network) sweepTables(ctx context.Context, alive func(string) bool) error {
	networks, err := n.builtin.Networks()
	if err != nil || len(networks) == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	end, err := n.beginAlone(ctx)
	if err != nil {
		return fmt.Errorf("sweep tables: %w", err)
	}
	defer end()
	used, err := n.builtinLists()
	if err != nil {
		return err
	}
	errs := []error{n.removeTables(func(name string) bool { return len(used[name]) == 0 })}
	for _, name := range networks {
		if len(used[name]) == 0 {
			continue
		}
		errs = append(errs,
			n.builtin.ReleaseHostPorts(name, func(id string) bool { return !alive(id) }),
			n.builtin.PruneMasquerading(name, used[name]))
	}
	return errors.Join(errs...)
}

// builtinLists returns the configurations whose built-in plugins run in this process, by network:
// the present one, and those of attached pods.
func (n *Network) builtinLists() (map[string][]*libcni.NetworkConfigList, error) {
	lists := map[string][]*libcni.NetworkConfigList{}
	if c := n.current(); c.err == nil && n.whyExecuted(c.list) == nil {
		lists[c.list.Name] = append(lists[c.list.Name], c.list)
	}
	ids, err := n.records.ids()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		rec, err := n.records.read(id)
		if err != nil || !rec.InProcess {
			continue // Leftovers reports unreadable records
		}
		if list, err := rec.list(); err == nil {
			lists[list.Name] = append(lists[list.Name], list)
		}
	}
	return lists, nil
}

// removeTables removes the tables of the networks for which drop returns true.
func (n *Network) removeTables(drop func(network string) bool) error {
	networks, err := n.builtin.Networks()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range networks {
		if drop(name) {
			errs = append(errs, n.builtin.RemoveNetwork(name))
		}
	}
	return errors.Join(errs...)
}

// tableLeftovers finds tables that no network needs, and host ports whose pod is not alive.
func (n *Network) tableLeftovers(alive func(string) bool) ([]Leftover, error) {
	networks, err := n.builtin.Networks()
	if err != nil || len(networks) == 0 {
		return nil, err
	}
	used, err := n.builtinLists()
	if err != nil {
		return nil, err
	}
	var leftovers []Leftover
	var errs []error
	for _, name := range networks {
		if len(used[name]) == 0 {
			leftovers = append(leftovers, Leftover{"nft table mica/" + name, "rules of a network that is not in use"})
		}
		ports, err := n.builtin.HostPorts(name)
		errs = append(errs, err)
		for id, list := range ports {
			if !alive(id) {
				what := fmt.Sprintf("host ports %s of unknown pod %q", strings.Join(list, ", "), id)
				leftovers = append(leftovers, Leftover{"nft table mica/" + name, what})
			}
		}
	}
	return leftovers, errors.Join(errs...)
}
