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

	"k8s.io/klog/v2"

	"github.com/micarun/mica/config"
	"github.com/micarun/mica/internal/admin"
	"github.com/micarun/mica/runtimeservice/cgroup"
	"github.com/micarun/mica/runtimeservice/oci"
)

const (
	// cgroupTimeout bounds the removal of one cgroup.
	cgroupTimeout = 10 * time.Second
	// probeID names the cgroup for trying out OCI runtimes.
	probeID = "probe"
	// probeOwner marks a default parent that was made for it only.
	probeOwner = "probe"
)

// openRuntimes returns the OCI runtimes by handler name; "" maps to the one for pods without a
// handler. It skips runtimes that are not installed.
func (n *node) openRuntimes(ctx context.Context, c config.Config) (map[string]*oci.Runtime, error) {
	log := klog.FromContext(ctx)
	installed := map[string]oci.Handler{}
	for name, h := range c.Runtimes {
		path, err := exec.LookPath(h.Path)
		if err != nil {
			log.Info("Skipping OCI runtime that is not installed", "handler", name, "reason", err.Error())
			continue
		}
		h.Path = path
		installed[name] = h
	}
	tried, err := n.triedRuntimes(ctx, c, installed)
	if err != nil {
		return nil, err
	}
	for _, refusal := range tried.Refusals {
		log.Info("OCI runtime cannot run containers on this host", "reason", refusal)
	}
	starter := "" // none
	if !c.Pods.ExecByRuntime {
		if starter, err = helper(c.Pods.InitBinary, initName); err != nil {
			return nil, err
		}
	}
	runtimes := map[string]*oci.Runtime{}
	for name, h := range installed {
		options := n.runtimeOptions()
		options.Helper = starter
		if f, ok := tried.Features[name]; ok {
			options.Features = &f
		}
		runtimes[name] = oci.New(h, options)
	}
	runtimes[""] = runtimes[tried.Default]
	log.Info("Found OCI runtimes", "default", tried.Default, "handlers", strings.Join(sortedKeys(installed), " "))
	return runtimes, nil
}

func (n *node) runtimeOptions() oci.Options {
	return oci.Options{SystemdCgroup: n.cgroups.Driver() == cgroup.Systemd, Reaper: n.reaper, Unfreeze: n.cgroups.Unfreeze}
}

// chooseRuntime returns the first of the candidates that can run a container on this host, and why
// earlier ones cannot. It tries each.
func (n *node) chooseRuntime(ctx context.Context, c config.Config, candidates []oci.Handler) (name string, refused []error, err error) {
	// The keeper is linked statically and exits at once after printing its version.
	static, err := helper(c.Keeper.Binary, keeperName)
	if err != nil {
		return "", nil, err
	}
	parent, err := n.cgroups.PodParent("", probeID)
	if err != nil {
		return "", nil, fmt.Errorf("choose OCI runtime: %w", err)
	}
	if err := n.cgroups.EnsureDefault(ctx, probeOwner); err != nil {
		return "", nil, fmt.Errorf("choose OCI runtime: %w", err)
	}
	defer n.removeProbe(ctx, parent)
	work := filepath.Join(c.StateDir, "probe")
	if err := os.MkdirAll(work, 0o700); err != nil {
		return "", nil, fmt.Errorf("choose OCI runtime: %w", err)
	}
	handler, refusals := oci.Probe(ctx, candidates, oci.ProbeArgs{
		WorkDir:       work,
		Binary:        static,
		Args:          []string{"version"},
		SystemdCgroup: n.cgroups.Driver() == cgroup.Systemd,
		CgroupsPath:   n.cgroups.ContainerPath(parent, probeID),
	})
	if handler.Path == "" {
		return "", nil, fmt.Errorf("choose OCI runtime: %w", errors.Join(refusals...))
	}
	return handler.Name, refusals, nil
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

func (n *node) handlers() []admin.Runtime {
	var list []admin.Runtime
	for _, name := range sortedKeys(n.runtimes) {
		h := n.runtimes[name].Handler()
		list = append(list, admin.Runtime{Handler: name, Path: h.Path, Type: h.Type})
	}
	return list
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
