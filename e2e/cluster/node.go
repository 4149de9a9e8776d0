package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/micarun/mica/e2e/containerd"
	"github.com/micarun/mica/e2e/node"
)

// Node is one node of a cluster. Only methods that start and end nothing may be called
// concurrently.
type Node struct {
	// Name is the node's name in Kubernetes.
	Name string
	// IP is the node's address, and Pods its pod subnet.
	IP   netip.Addr
	Pods netip.Prefix
	// Mica is the container runtime.
	Mica *node.Node
	// Bus is the address of the D-Bus on which the next kubelet waits for a shutdown. Empty: none.
	Bus string

	cluster *Cluster
	host    *host
	peer    *containerd.Daemon       // runs instead of Mica, if not nil
	dir     string                   // all files except the state directory
	ended   map[string]chan struct{} // each is closed when a program started by this process has ended
}

// registry is the address of a registry on every node that serves all images.
const registry = "127.0.0.1:5055"

func nodeName(index int) string { return "node" + strconv.Itoa(index+1) }

func (c *Cluster) newNode(index int, h *host) *Node {
	n := &Node{
		Name: nodeName(index), IP: nodeAddress(index), Pods: podSubnet(index),
		cluster: c, host: h, dir: filepath.Join(c.data(), nodeName(index)), ended: map[string]chan struct{}{},
	}
	n.Mica = &node.Node{Options: n.micaOptions(index)}
	n.Mica.Enter = append(n.Mica.Enter, n.enterMeter()...)
	return n
}

// cgroupOf is the name of a node's cgroup, and of the node's other objects that are visible on the
// machine.
func (c *Cluster) cgroupOf(index int) string { return fmt.Sprintf("%s-%d", c.Name, index+1) }

func (n *Node) micaOptions(index int) node.Options {
	return node.Options{
		Bin: n.cluster.Bin, Name: n.cluster.cgroupOf(index),
		State: filepath.Join(n.cluster.state(), n.Name), Data: filepath.Join(n.dir, "mica"),
		Subnet: n.Pods, Mirror: registry, ConfDir: filepath.Join(n.dir, "net.d"),
		Enter: n.host.enter(), Metrics: "127.0.0.1:9179", Dial: n.Dial, Log: n.Log("micad"),
	}
}

func (n *Node) logs() string { return filepath.Join(n.dir, "log") }

// Log is the path of the log of one of the node's programs, including the control plane: kubelet,
// kube-proxy, micad, kube-apiserver …
func (n *Node) Log(program string) string { return filepath.Join(n.logs(), program+".log") }

// Other reports whether the node has the other settings: crun before runc, and a kubelet that uses
// the runtime's events for pods and takes all statistics from the runtime. Every second node has
// them.
func (n *Node) Other() bool { return n.Pods.Addr().As4()[2]%2 == 1 }

// Disk is the directory of the node's file system for the kubelet's data and container logs.
func (n *Node) Disk() string { return filepath.Join(n.dir, "disk") }

// Dial connects to an IP address and port as a process on the node would.
func (n *Node) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return n.host.dial(ctx, network, address)
}

// Listen listens on an IP address and port of the node.
func (n *Node) Listen(ctx context.Context, address string) (net.Listener, error) {
	return n.host.listen(ctx, address)
}

// UsePlainHTTP configures Mica to use the registry at an address without TLS.
func (n *Node) UsePlainHTTP(address string) error {
	dir := filepath.Join(n.Mica.Data, "certs.d", address)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("configure registry %s: %w", address, err)
	}
	text := fmt.Sprintf("server = \"http://%s\"\n", address)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
		return fmt.Errorf("configure registry %s: %w", address, err)
	}
	return nil
}

// Shell is the command line that opens a shell on the node.
func (n *Node) Shell() string { return strings.Join(append(n.host.enter(), "bash"), " ") }

// Run runs a command on the node and returns its output.
func (n *Node) Run(ctx context.Context, name string, arguments ...string) (string, error) {
	out, err := n.host.command(ctx, name, arguments...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("run %s on %s: %w: %s", name, n.Name, err, out)
	}
	return string(out), nil
}

// route adds the route to the other node's pods.
func (n *Node) route(ctx context.Context, other *Node) error {
	return n.host.script(ctx, fmt.Sprintf("ip route replace %s via %s", other.Pods, other.IP))
}

// adopt finds the container runtime of a node that another process started.
func (n *Node) adopt(ctx context.Context) error {
	if !n.host.lives() {
		return nil
	}
	adopted, err := node.Adopt(ctx, n.Mica.Options)
	if err != nil {
		return err
	}
	n.Mica = adopted
	return nil
}

// start starts the node's programs and returns when Kubernetes reports the node ready.
func (n *Node) start(ctx context.Context) error {
	if err := n.prepare(ctx); err != nil {
		return err
	}
	err := n.spawn(filepath.Join(n.cluster.Bin, "imagebox"), "serve", "-addr", registry)
	if err != nil {
		return err
	}
	if err := n.startRuntime(ctx); err != nil {
		return err
	}
	if err := errors.Join(n.StartKubelet(), n.startProxy()); err != nil {
		return err
	}
	return n.AwaitReady(ctx)
}

// AwaitReady waits until Kubernetes reports the node ready.
func (n *Node) AwaitReady(ctx context.Context) error {
	return n.awaitService(ctx, "kubelet", func(ctx context.Context) error {
		object, err := n.Object(ctx)
		if err != nil {
			return err
		}
		if object.Spec.PodCIDR != n.Pods.String() {
			return fmt.Errorf("the pod subnet of %s is %q, want %s", n.Name, object.Spec.PodCIDR, n.Pods)
		}
		for _, condition := range object.Status.Conditions {
			if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("%s is not ready: %v", n.Name, object.Status.Conditions)
	})
}

// Object returns the node's API object.
func (n *Node) Object(ctx context.Context) (corev1.Node, error) {
	var object corev1.Node
	err := n.cluster.Get(ctx, "/api/v1/nodes/"+n.Name, &object)
	return object, err
}

// StartKubelet starts the kubelet.
func (n *Node) StartKubelet() error {
	if err := n.writeKubeletConfig(); err != nil {
		return err
	}
	by := append([]string{"env", "DBUS_SYSTEM_BUS_ADDRESS=" + n.Bus}, n.withoutSysctls()...)
	return n.spawnBy(by, filepath.Join(n.cluster.Tools, "kubelet"), flags(map[string]string{
		"config": n.kubeletConfig(), "kubeconfig": n.cluster.pki(n.Name + ".conf"),
		"hostname-override": n.Name, "node-ip": n.IP.String(), "root-dir": n.kubeletRoot(),
		"cert-dir": filepath.Join(n.dir, "generated"), "v": "2",
	})...)
}

// StopKubelet ends the kubelet.
func (n *Node) StopKubelet(ctx context.Context) error {
	return n.host.end(ctx, "kubelet")
}

func (n *Node) startProxy() error {
	return n.spawn(filepath.Join(n.cluster.Tools, "kube-proxy"), "--config="+n.proxyConfig(), "--hostname-override="+n.Name)
}

// stop ends the node's programs and everything that Mica runs. It reports what Mica left.
func (n *Node) stop(ctx context.Context) error {
	if !n.host.lives() {
		return nil
	}
	var errs []error
	for _, program := range []string{"kube-proxy", "kubelet"} {
		errs = append(errs, n.host.end(ctx, program))
	}
	errs = append(errs, n.removeRuntime(ctx), n.host.end(ctx, "imagebox"))
	return errors.Join(errs...)
}

// destroy ends the namespaces and removes the kubelet's cgroups.
func (n *Node) destroy(ctx context.Context) error {
	err := n.host.destroy(ctx)
	for _, root := range n.cgroups() {
		err = errors.Join(err, removeCgroup(ctx, root))
	}
	return err
}

// cgroups returns the directory of the node's cgroup in every hierarchy with controllers of the
// kubelet.
func (n *Node) cgroups() []string {
	hierarchies, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs") // the pattern is valid
	var dirs []string
	for _, file := range hierarchies {
		dirs = append(dirs, filepath.Dir(file)+n.Mica.CgroupParent())
	}
	if len(dirs) == 0 {
		dirs = []string{"/sys/fs/cgroup" + n.Mica.CgroupParent()}
	}
	return dirs
}

// removeCgroup removes a cgroup and those below it once they have no process.
func removeCgroup(ctx context.Context, root string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return Await(ctx, "cgroup "+root+" to be empty", func(context.Context) error {
		var dirs []string
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		for _, dir := range slices.Backward(dirs) {
			err = errors.Join(err, unix.Rmdir(dir))
		}
		return err
	})
}
