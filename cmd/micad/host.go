package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/capability"

	"github.com/micarun/mica/config"
	"github.com/micarun/mica/internal/version"
	"github.com/micarun/mica/runtimeservice"
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

func (n *node) cgroupMode() string {
	version := "v1"
	if n.cgroups.Mode().V2 {
		version = "v2"
	}
	return version + " " + string(n.cgroups.Driver())
}
