package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The fixed directories of the suite's kubelet and API server, which no option changes.
const (
	kubeletFiles   = "/var/lib/kubelet"
	apiserverFiles = "/run/kubernetes"
)

func (n *Node) work() string       { return filepath.Join(n.dir, "suite") }
func (n *Node) wrappers() string   { return filepath.Join(n.dir, "bin") }
func (n *Node) runtimePid() string { return filepath.Join(n.dir, "micad.pid") }

// prepareSuite writes the configurations and makes the mounts for the suite, which starts a kubelet
// itself.
func (n *Node) prepareSuite(ctx context.Context) error {
	for _, dir := range []string{n.Disk(), n.logs(), n.work(), n.wrappers(), filepath.Join(n.Mica.Data, "conf.d")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("prepare %s: %w", n.Name, err)
		}
	}
	return errors.Join(
		n.makeDisk(ctx, suiteDisk), n.hideMachine(ctx), n.mountSuite(ctx), n.writeWrappers(), n.writeSuiteConfig(),
		os.WriteFile(n.resolver(), []byte("# no name servers\n"), 0o644),
		n.UsePlainHTTP("localhost:5000"), // a registry that specs run in a pod
		os.WriteFile(filepath.Join(n.Mica.Data, "conf.d", "suite.toml"), []byte(suiteRuntimes), 0o644),
	)
}

// suiteRuntimes adds the handler that specs of RuntimeClasses need.
const suiteRuntimes = `[runtimes.test-handler]
path = "runc"
type = "runc"
`

// mountSuite mounts directories of the node at the fixed paths of the programs. It also hides
// systemd's tools: the suite would use them, although systemd may not run.
func (n *Node) mountSuite(ctx context.Context) error {
	return n.host.script(ctx, fmt.Sprintf(`
		mkdir %[1]s/kubelet %[1]s/log %[1]s/apiserver
		mount --bind %[1]s/kubelet %[2]s
		mount --bind %[1]s/apiserver %[3]s
		mount --bind %[1]s/log /var/log
		for tool in systemd-run journalctl; do
			if path=$(command -v $tool); then mount --bind /dev/null "$path"; fi
		done
	`, n.Disk(), kubeletFiles, apiserverFiles))
}

// writeWrappers writes the kubelet that the suite starts, and a sudo for root. The suite's program
// is linked beside them, because it looks for the kubelet in its own directory.
func (n *Node) writeWrappers() error {
	var quoted []string
	for _, word := range append(n.withoutSysctls(), filepath.Join(n.cluster.Tools, "kubelet")) {
		quoted = append(quoted, "'"+strings.ReplaceAll(word, "'", `'\''`)+"'")
	}
	suite := filepath.Join(n.wrappers(), suiteProgram)
	if err := os.Remove(suite); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.Join(
		os.Symlink(filepath.Join(n.cluster.Tools, suiteProgram), suite),
		os.WriteFile(filepath.Join(n.wrappers(), "kubelet"), []byte("#!/bin/sh\nexec "+strings.Join(quoted, " ")+" \"$@\"\n"), 0o755),
		os.WriteFile(filepath.Join(n.wrappers(), "sudo"), []byte("#!/bin/sh\nexec \"$@\"\n"), 0o755),
	)
}

// writeSuiteConfig writes the kubelet's settings that the suite itself does not make.
func (n *Node) writeSuiteConfig() error {
	return writeJSON(n.kubeletConfig(), object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"cgroupDriver": "cgroupfs", "cgroupRoot": "/",
		// A development machine may have or lack these.
		"failSwapOn": false, "failCgroupV1": false, "oomScoreAdj": 0,
		"resolvConf":          n.resolver(),
		"volumePluginDir":     filepath.Join(n.dir, "volume-plugins"),
		"serializeImagePulls": false, "imageGCHighThresholdPercent": 100,
		"evictionHard": object{
			"nodefs.available": "100Mi", "nodefs.inodesFree": "1%", "memory.available": "50Mi",
			"imagefs.available": "100Mi", "imagefs.inodesFree": "1%",
		},
		"evictionPressureTransitionPeriod": "30s",
		// Short periods, so that specs need not wait.
		"volumeStatsAggPeriod": "10s", "fileCheckFrequency": "10s",
	})
}
