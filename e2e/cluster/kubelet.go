package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// object is a JSON object under construction.
type object = map[string]any

// diskSize is the size of the file system with the kubelet's data. It is small, so that a test can
// fill it.
const diskSize = 1 << 30

func (n *Node) kubeletConfig() string { return filepath.Join(n.dir, "kubelet.json") }
func (n *Node) proxyConfig() string   { return filepath.Join(n.dir, "kube-proxy.json") }
func (n *Node) kubeletRoot() string   { return filepath.Join(n.Disk(), "kubelet") }
func (n *Node) resolver() string      { return filepath.Join(n.dir, "resolv.conf") }
func (n *Node) template() string      { return filepath.Join(n.dir, "cni-template.json") }

// prepare writes the configurations, and makes the mounts and cgroups that the programs need.
func (n *Node) prepare(ctx context.Context) error {
	for _, dir := range []string{n.Disk(), n.logs(), filepath.Join(n.Mica.Data, "conf.d")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("prepare %s: %w", n.Name, err)
		}
	}
	for _, dir := range n.cgroups() {
		if strings.HasPrefix(dir, unified) {
			continue
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("prepare %s: %w", n.Name, err)
		}
	}
	if dir := n.meter(); dir != "" {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("prepare %s: %w", n.Name, err)
		}
	}
	return errors.Join(
		n.makeDisk(ctx, diskSize), n.hideMachine(ctx), n.writeProxyConfig(), n.writeNetwork(),
		os.WriteFile(n.resolver(), []byte("# no name servers\n"), 0o644),
	)
}

// makeDisk makes the node's file system.
func (n *Node) makeDisk(ctx context.Context, size int64) error {
	image := n.Disk() + ".img"
	file, err := os.Create(image)
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	if err := errors.Join(file.Truncate(size), file.Close()); err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	return n.host.script(ctx, fmt.Sprintf(`
		mkfs.ext4 -q -m 0 %[1]s.img
		mount -o loop %[1]s.img %[1]s
	`, n.Disk()))
}

// unified is the mount point of the cgroup v2 hierarchy on machines that also have v1.
const unified = "/sys/fs/cgroup/unified/"

// hideMachine mounts a tmpfs over /var/log, so that the kubelet writes nothing there on the
// machine. If the machine has a cgroup v2 hierarchy besides v1, it also replaces that by a tmpfs:
// crun refuses to run with the hierarchy, and without the mount point it would create directories
// in its place.
func (n *Node) hideMachine(ctx context.Context) error {
	return n.host.script(ctx, `
		mount -t tmpfs -o size=16m logs /var/log
		if mountpoint -q /sys/fs/cgroup/unified; then
			umount /sys/fs/cgroup/unified
			mount -t tmpfs -o size=16m none /sys/fs/cgroup/unified
		fi
	`)
}

// withoutSysctls returns a command line that gives a kubelet private copies of the sysctls that it
// sets for the whole machine. Only the kubelet sees the copies: with parts of /proc covered, a user
// namespace could not mount a new /proc.
func (n *Node) withoutSysctls() []string {
	const script = `
		dir=$1
		shift
		mkdir -p "$dir"
		mount --make-private /proc
		for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
			kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
			cat /proc/sys/$name >"$dir/${name##*/}"
			mount --bind "$dir/${name##*/}" /proc/sys/$name
		done
		exec "$@"
	`
	return []string{"unshare", "--mount", "--propagation=unchanged", "sh", "-ec", script, "sh", filepath.Join(n.dir, "sysctl")}
}

func (n *Node) writeKubeletConfig() error {
	config := object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"containerRuntimeEndpoint": "unix://" + n.socket(),
		"authentication": object{
			"anonymous": object{"enabled": false}, "webhook": object{"enabled": true},
			"x509": object{"clientCAFile": n.cluster.pki("ca.crt")},
		},
		"authorization": object{"mode": "Webhook"},
		"tlsCertFile":   n.cluster.pki(n.Name + ".crt"), "tlsPrivateKeyFile": n.cluster.pki(n.Name + ".key"),
		"cgroupDriver": "cgroupfs", "cgroupRoot": n.Mica.CgroupParent(),
		// A development machine may have or lack these.
		"failSwapOn": false, "failCgroupV1": false, "oomScoreAdj": 0,
		"resolvConf": n.resolver(), "podLogsDir": filepath.Join(n.Disk(), "pods"),
		"volumePluginDir":     filepath.Join(n.dir, "volume-plugins"),
		"serializeImagePulls": false, "imageGCHighThresholdPercent": 100, "imageMaximumGCAge": "3m",
		// The images are on the machine's disk, whose free space the test cannot control.
		"evictionHard": object{
			"nodefs.available": "100Mi", "nodefs.inodesFree": "1%", "memory.available": "50Mi",
			"imagefs.available": "100Mi", "imagefs.inodesFree": "1%",
		},
		"evictionPressureTransitionPeriod": "5s",
		// A test needs to write little until a log is rotated.
		"containerLogMaxSize": "2Mi", "containerLogMaxFiles": 9, "containerLogMonitorInterval": "3s",
	}
	if n.Bus != "" {
		config["shutdownGracePeriod"], config["shutdownGracePeriodCriticalPods"] = "20s", "5s"
	}
	if n.Other() {
		config["featureGates"] = object{"EventedPLEG": true, "PodAndContainerStatsFromCRI": true}
	}
	return writeJSON(n.kubeletConfig(), config)
}

func (n *Node) writeProxyConfig() error {
	return writeJSON(n.proxyConfig(), object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"clientConnection": object{"kubeconfig": n.cluster.pki("proxy.conf")},
		"mode":             "nftables", "clusterCIDR": podNetwork,
		"conntrack": object{"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	})
}

// writeNetwork writes the template of the network configuration. Mica completes it when the kubelet
// sends the node's pod subnet.
func (n *Node) writeNetwork() error {
	err := writeJSON(n.template(), object{
		"cniVersion": "1.0.0", "name": n.Mica.Name,
		"plugins": []object{
			{
				"type": "bridge", "bridge": n.Mica.Name, "isGateway": true, "hairpinMode": true,
				"ipam": object{
					"type": "host-local", "dataDir": filepath.Join(n.Mica.Data, "network/leases"),
					"ranges": [][]object{{{"subnet": "{{.PodCIDR}}"}}}, "routes": []object{{"dst": "0.0.0.0/0"}},
				},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}, "snat": true},
		},
	})
	if err != nil {
		return err
	}
	// Cgroups that are not the kubelet's are below a separate cgroup of the node.
	runtimes := []string{"runc", "crun"}
	if n.Other() {
		slices.Reverse(runtimes)
	}
	config := fmt.Sprintf("default_runtimes = [%q, %q]\n\n[network]\nconf_template = %q\n\n[cgroups]\ndefault_parent = %q\n\n[images]\npinned = [%q]\n",
		runtimes[0], runtimes[1], n.template(), n.Mica.CgroupParent()+"/mica", Pinned)
	return os.WriteFile(filepath.Join(n.Mica.Data, "conf.d", "cluster.toml"), []byte(config), 0o644)
}
