package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/capability"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/config"
	"github.com/micarun/mica/internal/admin"
	"github.com/micarun/mica/internal/version"
	"github.com/micarun/mica/runtimeservice"
	"github.com/micarun/mica/runtimeservice/cgroup"
	"github.com/micarun/mica/runtimeservice/oci"
	"github.com/micarun/mica/runtimeservice/spec"
)

const (
	keeperName = "mica-keeper"
	initName   = "mica-init"
	// orphanGrace is how long the reaper leaves a dead child to a package that may wait for it
	// itself, such as os/exec.
	orphanGrace = 10 * time.Second
	// libexec is searched for helpers that are not in the daemon's directory.
	libexec = "/usr/libexec/mica"
	// lowestOOMScore is the kernel's lowest oom_score_adj.
	lowestOOMScore = -1000
	// cgroupTimeout bounds the removal of one cgroup.
	cgroupTimeout = 10 * time.Second
	// probeID names the cgroup for trying out OCI runtimes.
	probeID = "probe"
	// probeOwner marks a default parent that was made for it only.
	probeOwner = "probe"
)

// helper returns the path of a helper: setting if it is set, otherwise an executable in the
// daemon's directory, in libexec or in PATH.
func helper(setting, name string) (string, error) {
	if setting != "" {
		return setting, nil
	}
	var dirs []string
	if self, err := os.Executable(); err == nil {
		dirs = append(dirs, filepath.Dir(self))
	}
	for _, dir := range append(dirs, libexec) {
		path := filepath.Join(dir, name)
		if _, err := exec.LookPath(path); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find helper: %w", err)
	}
	return path, nil
}

func serviceOptions(c config.Config) (runtimeservice.Options, error) {
	o := c.Pods
	o.Version = version.String()
	var err error
	o.InitBinary, err = helper(o.InitBinary, initName)
	return o, err
}

// openRuntimes returns the OCI runtimes by handler name; "" maps to the one for pods without a
// handler. It skips runtimes that are not installed.
func (n *node) openRuntimes(ctx context.Context, c config.Config) (map[string]*oci.Runtime, error) {
	log := klog.FromContext(ctx)
	options := oci.Options{SystemdCgroup: n.cgroups.Driver() == cgroup.Systemd, Reaper: n.reaper, Unfreeze: n.cgroups.Unfreeze}
	runtimes := map[string]*oci.Runtime{}
	installed := map[string]oci.Handler{}
	for name, h := range c.Runtimes {
		path, err := exec.LookPath(h.Path)
		if err != nil {
			log.Info("Skipping OCI runtime that is not installed", "handler", name, "reason", err.Error())
			continue
		}
		h.Path = path
		installed[name] = h
		runtimes[name] = oci.New(h, options)
	}
	chosen, err := n.chooseRuntime(ctx, c, installed)
	if err != nil {
		return nil, err
	}
	runtimes[""] = runtimes[chosen]
	log.Info("Found OCI runtimes", "default", chosen, "handlers", strings.Join(sortedKeys(installed), " "))
	return runtimes, nil
}

// chooseRuntime returns the first default runtime that can run a container on this host; it tries
// each.
func (n *node) chooseRuntime(ctx context.Context, c config.Config, installed map[string]oci.Handler) (string, error) {
	var candidates []oci.Handler
	for _, name := range c.DefaultRuntimes {
		if h, ok := installed[name]; ok {
			candidates = append(candidates, h)
		}
	}
	if len(candidates) == 0 {
		return "", fmt.Errorf("choose OCI runtime: none of %s is installed", strings.Join(c.DefaultRuntimes, ", "))
	}
	// The keeper is linked statically and exits at once after printing its version.
	static, err := helper(c.Keeper.Binary, keeperName)
	if err != nil {
		return "", err
	}
	parent, err := n.cgroups.PodParent("", probeID)
	if err != nil {
		return "", fmt.Errorf("choose OCI runtime: %w", err)
	}
	if err := n.cgroups.EnsureDefault(ctx, probeOwner); err != nil {
		return "", fmt.Errorf("choose OCI runtime: %w", err)
	}
	defer n.removeProbe(ctx, parent)
	work := filepath.Join(c.StateDir, "probe")
	if err := os.MkdirAll(work, 0o700); err != nil {
		return "", fmt.Errorf("choose OCI runtime: %w", err)
	}
	handler, refusals := oci.Probe(ctx, candidates, oci.ProbeArgs{
		WorkDir:       work,
		Binary:        static,
		Args:          []string{"version"},
		SystemdCgroup: n.cgroups.Driver() == cgroup.Systemd,
		CgroupsPath:   n.cgroups.ContainerPath(parent, probeID),
	})
	if handler.Path == "" {
		return "", fmt.Errorf("choose OCI runtime: %w", errors.Join(refusals...))
	}
	for _, refusal := range refusals {
		klog.FromContext(ctx).Info("OCI runtime cannot run containers on this host", "reason", refusal.Error())
	}
	return handler.Name, nil
}

// removeCgroup removes a cgroup that the daemon itself used.
func (n *node) removeCgroup(ctx context.Context, path string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cgroupTimeout)
	defer cancel()
	if err := n.cgroups.RemoveParent(ctx, path); err != nil {
		klog.FromContext(ctx).Error(err, "Removing cgroup failed", "path", path)
	}
}

// removeProbe removes the cgroups for trying out OCI runtimes.
func (n *node) removeProbe(ctx context.Context, path string) {
	n.removeCgroup(ctx, path)
	if err := n.cgroups.RemoveDefault(probeOwner); err != nil {
		klog.FromContext(ctx).Error(err, "Removing the default parent of cgroups failed")
	}
}

// clamped lists the privileges that the daemon cannot give to containers on this host.
func clamped(h spec.Host) []string {
	var lines, missing []string
	for _, c := range capability.ListKnown() {
		if name := "CAP_" + strings.ToUpper(c.String()); !slices.Contains(h.Capabilities, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		lines = append(lines, "privileged containers lack "+strings.Join(missing, ", "))
	}
	if h.OOMScoreAdjMin > lowestOOMScore {
		lines = append(lines, fmt.Sprintf("oom_score_adj is raised to at least %d", h.OOMScoreAdjMin))
	}
	if !h.RaiseRlimits {
		lines = append(lines, "resource limits are lowered to the daemon's own hard limits")
	}
	return lines
}

func (n *node) handlers() []admin.Runtime {
	var list []admin.Runtime
	for _, name := range sortedKeys(n.runtimes) {
		h := n.runtimes[name].Handler()
		list = append(list, admin.Runtime{Handler: name, Path: h.Path, Type: h.Type})
	}
	return list
}

func (n *node) cgroupMode() string {
	version := "v1"
	if n.cgroups.Mode().V2 {
		version = "v2"
	}
	return version + " " + string(n.cgroups.Driver())
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
