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

// Where the suite's kubelet and API server keep their files, whatever they are told.
const (
	kubeletFiles   = "/var/lib/kubelet"
	apiserverFiles = "/run/kubernetes"
)

func (n *Node) work() string       { return filepath.Join(n.dir, "suite") }
func (n *Node) wrappers() string   { return filepath.Join(n.dir, "bin") }
func (n *Node) runtimePid() string { return filepath.Join(n.dir, "micad.pid") }

// prepareSuite writes the configurations and makes the mounts for the suite, which
// starts a kubelet itself.
func (n *Node) prepareSuite(ctx context.Context) error {
	for _, dir := range []string{n.Disk(), n.logs(), n.work(), n.wrappers(), filepath.Join(n.Mica.Data, "conf.d")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("prepare %s: %w", n.Name, err)
		}
	}
	return errors.Join(
		n.makeDisk(ctx, suiteDisk), n.hideMachine(ctx), n.mountSuite(ctx), n.writeWrappers(), n.writeSuiteConfig(),
		os.WriteFile(n.resolver(), []byte("# nobody to ask\n"), 0o644),
		n.UsePlainHTTP("localhost:5000"), // a registry that specs run as a pod
		os.WriteFile(filepath.Join(n.Mica.Data, "conf.d", "suite.toml"), []byte(suiteRuntimes), 0o644),
	)
}

// suiteRuntimes adds the handler that specs of RuntimeClasses expect.
const suiteRuntimes = `[runtimes.test-handler]
path = "runc"
type = "runc"
`

// mountSuite puts directories of the node's own where the programs have fixed
// paths, and hides systemd's tools: the suite would use them, and there may be no
// systemd behind them.
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

// writeSuiteConfig writes what the suite's kubelet is to have besides what the
// suite itself says.
func (n *Node) writeSuiteConfig() error {
	return writeJSON(n.kubeletConfig(), object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"cgroupDriver": "cgroupfs", "cgroupRoot": "/",
		// What a development machine may have, or may lack.
		"failSwapOn": false, "failCgroupV1": false, "oomScoreAdj": 0,
		"resolvConf":          n.resolver(),
		"volumePluginDir":     filepath.Join(n.dir, "volume-plugins"),
		"serializeImagePulls": false, "imageGCHighThresholdPercent": 100,
		"evictionHard": object{
			"nodefs.available": "100Mi", "nodefs.inodesFree": "1%", "memory.available": "50Mi",
			"imagefs.available": "100Mi", "imagefs.inodesFree": "1%",
		},
		"evictionPressureTransitionPeriod": "30s",
		// So that specs need not wait for them.
		"volumeStatsAggPeriod": "10s", "fileCheckFrequency": "10s",
	})
}
