package nri

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// generator makes the small edits by which the library applies adjustments. Its specification has a
// process and a Linux part.
type generator struct {
	spec *specs.Spec
	// env maps the names of the first indexed variables to their indexes. The index is needed
	// because the library sets every variable again when a plugin changes one.
	env     map[string]int
	indexed int
}

var _ generate.UnderlyingGenerator = (*generator)(nil)

func (g *generator) Spec() *specs.Spec { return g.spec }

func (g *generator) AddAnnotation(key, value string) {
	if g.spec.Annotations == nil {
		g.spec.Annotations = map[string]string{}
	}
	g.spec.Annotations[key] = value
}

func (g *generator) RemoveAnnotation(key string) { delete(g.spec.Annotations, key) }

func (g *generator) SetProcessArgs(args []string)   { g.spec.Process.Args = args }
func (g *generator) SetProcessOOMScoreAdj(adj int)  { g.spec.Process.OOMScoreAdj = &adj }
func (g *generator) ClearProcessEnv()               { g.spec.Process.Env, g.env = nil, nil }
func (g *generator) AddProcessEnv(name, val string) { g.setEnv(name + "=" + val) }

func (g *generator) setEnv(entry string) {
	name, _, _ := strings.Cut(entry, "=")
	if g.env == nil || g.indexed != len(g.spec.Process.Env) {
		g.env = make(map[string]int, len(g.spec.Process.Env))
		for i, old := range slices.Backward(g.spec.Process.Env) { // the first of two equal names is replaced
			old, _, _ = strings.Cut(old, "=")
			g.env[old] = i
		}
		g.indexed = len(g.spec.Process.Env)
	}
	if i, ok := g.env[name]; ok {
		g.spec.Process.Env[i] = entry
		return
	}
	g.env[name] = len(g.spec.Process.Env)
	g.spec.Process.Env = append(g.spec.Process.Env, entry)
	g.indexed = len(g.spec.Process.Env)
}

func (g *generator) Mounts() []specs.Mount    { return g.spec.Mounts }
func (g *generator) ClearMounts()             { g.spec.Mounts = nil }
func (g *generator) AddMount(mnt specs.Mount) { g.spec.Mounts = append(g.spec.Mounts, mnt) }
func (g *generator) RemoveMount(dest string) {
	g.spec.Mounts = slices.DeleteFunc(g.spec.Mounts, func(m specs.Mount) bool { return m.Destination == dest })
}

func (g *generator) hooks() *specs.Hooks {
	if g.spec.Hooks == nil {
		g.spec.Hooks = &specs.Hooks{}
	}
	return g.spec.Hooks
}

func (g *generator) AddPreStartHook(h specs.Hook) {
	//lint:ignore SA1019 plugins may still ask for it
	g.hooks().Prestart = append(g.hooks().Prestart, h)
}

func (g *generator) AddPostStartHook(h specs.Hook) {
	g.hooks().Poststart = append(g.hooks().Poststart, h)
}

func (g *generator) AddPostStopHook(h specs.Hook) {
	g.hooks().Poststop = append(g.hooks().Poststop, h)
}

func (g *generator) AddDevice(d specs.LinuxDevice) {
	g.RemoveDevice(d.Path)
	g.spec.Linux.Devices = append(g.spec.Linux.Devices, d)
}

func (g *generator) RemoveDevice(path string) {
	g.spec.Linux.Devices = slices.DeleteFunc(g.spec.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == path })
}

// AddOrReplaceLinuxNamespace makes the container join the namespace at path, or a new one if path
// is "".
func (g *generator) AddOrReplaceLinuxNamespace(ns, path string) error {
	if err := g.RemoveLinuxNamespace(ns); err != nil {
		return err
	}
	g.spec.Linux.Namespaces = append(g.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(ns), Path: path})
	return nil
}

// RemoveLinuxNamespace leaves the container in the node's namespace.
func (g *generator) RemoveLinuxNamespace(ns string) error {
	switch specs.LinuxNamespaceType(ns) {
	case specs.NetworkNamespace, specs.MountNamespace, specs.IPCNamespace, specs.UserNamespace,
		specs.UTSNamespace, specs.CgroupNamespace, specs.TimeNamespace:
	default:
		return fmt.Errorf("namespace %q: %w", ns, errdefs.ErrInvalidArgument)
	}
	g.spec.Linux.Namespaces = slices.DeleteFunc(g.spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return string(n.Type) == ns })
	return nil
}

func (g *generator) AddLinuxSysctl(key, value string) {
	if g.spec.Linux.Sysctl == nil {
		g.spec.Linux.Sysctl = map[string]string{}
	}
	g.spec.Linux.Sysctl[key] = value
}

func (g *generator) RemoveLinuxSysctl(key string)    { delete(g.spec.Linux.Sysctl, key) }
func (g *generator) SetLinuxCgroupsPath(path string) { g.spec.Linux.CgroupsPath = path }
func (g *generator) SetLinuxRootPropagation(p string) error {
	g.spec.Linux.RootfsPropagation = p
	return nil
}

func (g *generator) resources() *specs.LinuxResources {
	if g.spec.Linux.Resources == nil {
		g.spec.Linux.Resources = &specs.LinuxResources{}
	}
	return g.spec.Linux.Resources
}

func (g *generator) AddLinuxResourcesDevice(allow bool, kind string, major, minor *int64, access string) {
	r := g.resources()
	r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: major, Minor: minor, Access: access})
}

func (g *generator) AddLinuxResourcesHugepageLimit(size string, limit uint64) {
	r := g.resources()
	r.HugepageLimits = slices.DeleteFunc(r.HugepageLimits, func(h specs.LinuxHugepageLimit) bool { return h.Pagesize == size })
	r.HugepageLimits = append(r.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit})
}

func (g *generator) AddLinuxResourcesUnified(key, value string) {
	r := g.resources()
	if r.Unified == nil {
		r.Unified = map[string]string{}
	}
	r.Unified[key] = value
}

func (g *generator) cpu() *specs.LinuxCPU {
	r := g.resources()
	if r.CPU == nil {
		r.CPU = &specs.LinuxCPU{}
	}
	return r.CPU
}

func (g *generator) SetLinuxResourcesCPUCpus(cpus string)        { g.cpu().Cpus = cpus }
func (g *generator) SetLinuxResourcesCPUMems(mems string)        { g.cpu().Mems = mems }
func (g *generator) SetLinuxResourcesCPUPeriod(v uint64)         { g.cpu().Period = &v }
func (g *generator) SetLinuxResourcesCPUQuota(v int64)           { g.cpu().Quota = &v }
func (g *generator) SetLinuxResourcesCPUShares(v uint64)         { g.cpu().Shares = &v }
func (g *generator) SetLinuxResourcesCPURealtimePeriod(v uint64) { g.cpu().RealtimePeriod = &v }
func (g *generator) SetLinuxResourcesCPURealtimeRuntime(v int64) { g.cpu().RealtimeRuntime = &v }

func (g *generator) memory() *specs.LinuxMemory {
	r := g.resources()
	if r.Memory == nil {
		r.Memory = &specs.LinuxMemory{}
	}
	return r.Memory
}

func (g *generator) SetLinuxResourcesMemoryLimit(v int64) { g.memory().Limit = &v }
func (g *generator) SetLinuxResourcesMemorySwap(v int64)  { g.memory().Swap = &v }
