package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Options of a cluster. All are required unless marked optional.
type Options struct {
	// Name distinguishes the clusters of one machine. At most 12 bytes.
	Name string
	// Bin is the directory of the product's built binaries, including imagebox. Tools is the
	// directory returned by BuildTools.
	Bin, Tools string
	// Size is the number of nodes: 1 to 9.
	Size int
	// Metered runs every node's container runtime in a separate cgroup, for Node.CPU. Optional.
	Metered bool
	// Containerd is the path of a containerd to run on the nodes instead of Mica. Optional. Open
	// does not find such a cluster.
	Containerd string
}

// Cluster is a running cluster. Its methods may be called concurrently, except for those of its
// nodes that start and end programs.
type Cluster struct {
	Options
	Nodes []*Node

	api  *http.Client
	lock *os.File
}

const (
	startTimeout = 2 * time.Minute
	endTimeout   = 30 * time.Second
)

func (c *Cluster) state() string { return filepath.Join("/run", c.Name) }
func (c *Cluster) data() string  { return filepath.Join("/var/lib", c.Name) }

// nodesFile lists the nodes' hosts, the first one first.
func (c *Cluster) nodesFile() string { return filepath.Join(c.state(), "nodes.json") }

// ErrRuns means that the cluster already runs.
var ErrRuns = errors.New("cluster runs already")

// Up starts a cluster and returns when its nodes are ready. It first removes the remains of an
// earlier cluster of the same name. The error is ErrRuns if that cluster runs. If Up fails, the
// error contains the ends of the logs, and nothing else is left.
func Up(ctx context.Context, o Options) (*Cluster, error) {
	c := &Cluster{Options: o}
	if err := c.take(); err != nil {
		return nil, fmt.Errorf("start cluster %s: %w", o.Name, err)
	}
	earlier, err := c.hosts()
	if err == nil && len(earlier) > 0 && earlier[0].lives() {
		return nil, errors.Join(fmt.Errorf("start cluster %s: %w", o.Name, ErrRuns), c.Release())
	}
	// The cluster does not run, so its leftovers can be removed.
	_ = c.load(ctx)
	_ = c.Down(ctx)
	c.Nodes = nil
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := c.start(ctx); err != nil {
		err = fmt.Errorf("start cluster %s: %w\n%s", o.Name, err, c.LogTails(15))
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
		defer cancel()
		return nil, errors.Join(err, c.Down(clean), c.Release())
	}
	return c, nil
}

// Open finds the cluster that was started earlier with the same options. The error is
// fs.ErrNotExist if there is none.
func Open(ctx context.Context, o Options) (*Cluster, error) {
	c := &Cluster{Options: o}
	if err := c.take(); err != nil {
		return nil, fmt.Errorf("open cluster %s: %w", o.Name, err)
	}
	err := c.load(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.Join(err, os.Remove(c.lock.Name()))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open cluster %s: %w", o.Name, err), c.Release())
	}
	return c, nil
}

// take takes the cluster's lock, so that no other process works on the cluster.
func (c *Cluster) take() error {
	name := c.state() + ".lock"
	lock, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("take lock: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("another process works on it: %w", err), lock.Close())
	}
	c.lock = lock
	return nil
}

// Release lets another process open the cluster, which keeps running.
func (c *Cluster) Release() error { return c.lock.Close() }

// hosts reads the list of the nodes' hosts.
func (c *Cluster) hosts() ([]*host, error) {
	text, err := os.ReadFile(c.nodesFile())
	if err != nil {
		return nil, err
	}
	var hosts []*host
	if err := json.Unmarshal(text, &hosts); err != nil {
		return nil, fmt.Errorf("read %s: %w", c.nodesFile(), err)
	}
	return hosts, nil
}

// load finds the nodes.
func (c *Cluster) load(ctx context.Context) error {
	hosts, err := c.hosts()
	if err != nil {
		return err
	}
	for index, h := range hosts {
		n := c.newNode(index, h)
		if err := n.adopt(ctx); err != nil {
			return err
		}
		c.Nodes = append(c.Nodes, n)
	}
	return c.connect()
}

// start starts the nodes one by one, the first one with the control plane.
func (c *Cluster) start(ctx context.Context) error {
	for index := range c.Size {
		h, err := newHost(ctx)
		if err != nil {
			return err
		}
		n := c.newNode(index, h)
		c.Nodes = append(c.Nodes, n)
		if err := c.save(); err != nil {
			return errors.Join(err, h.destroy(ctx))
		}
		if err := c.join(ctx, n); err != nil {
			return fmt.Errorf("make network of %s: %w", n.Name, err)
		}
		if index == 0 {
			if err := c.startControlPlane(ctx); err != nil {
				return err
			}
		}
		if err := n.start(ctx); err != nil {
			return fmt.Errorf("start %s: %w", n.Name, err)
		}
	}
	return nil
}

// save writes the list of the nodes' hosts.
func (c *Cluster) save() error {
	var hosts []*host
	for _, n := range c.Nodes {
		hosts = append(hosts, n.host)
	}
	return writeJSON(c.nodesFile(), hosts)
}

// Pods, services and nodes have these addresses in every cluster: none can be seen outside of the
// cluster's namespaces.
const (
	podNetwork     = "10.91.0.0/16"
	serviceNetwork = "10.96.0.0/16"
	apiService     = "10.96.0.1"
)

func nodeAddress(index int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, 30, 0, byte(index + 1)})
}

func podSubnet(index int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 91, byte(index), 0}), 24)
}

// join gives the node its address and connects it with the nodes before it. The first node has the
// bridge, which has no port while that node is alone. The default route through the bridge makes
// requests to unknown addresses fail at once instead of waiting.
func (c *Cluster) join(ctx context.Context, n *Node) error {
	first := c.Nodes[0].host
	if n == c.Nodes[0] {
		return first.script(ctx, fmt.Sprintf(`
			ip link add nodes type bridge
			ip address add %s/24 dev nodes
			ip link set nodes up
			ip route add default dev nodes
		`, n.IP))
	}
	err := first.script(ctx, fmt.Sprintf(`
		ip link add %[1]s type veth peer name nodes netns %[2]d
		ip link set %[1]s master nodes up
	`, n.Name, n.host.Keeper))
	if err != nil {
		return err
	}
	err = n.host.script(ctx, fmt.Sprintf(`
		ip address add %s/24 dev nodes
		ip link set nodes up
		ip route add default dev nodes
	`, n.IP))
	for _, other := range c.Nodes {
		if other != n {
			err = errors.Join(err, n.route(ctx, other), other.route(ctx, n))
		}
	}
	return err
}

// ReplaceMica restarts the nodes' daemons with the current binaries.
func (c *Cluster) ReplaceMica(ctx context.Context) error {
	var errs []error
	for _, n := range c.Nodes {
		errs = append(errs, n.Mica.StopDaemon())
		_, err := n.Mica.StartDaemon(ctx)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Down stops the cluster and removes everything of it. It reports what Mica should have removed.
func (c *Cluster) Down(ctx context.Context) error {
	var errs []error
	for _, n := range c.Nodes {
		errs = append(errs, n.stop(ctx))
	}
	if len(c.Nodes) > 0 && c.Nodes[0].host.lives() {
		for _, program := range controlPlane() {
			errs = append(errs, c.Nodes[0].host.end(ctx, program))
		}
	}
	for _, n := range c.Nodes {
		errs = append(errs, n.destroy(ctx))
	}
	for _, dir := range []string{c.state(), c.data(), c.state() + ".lock"} {
		errs = append(errs, os.RemoveAll(dir))
	}
	left, err := c.left()
	return errors.Join(append(errs, err, left)...)
}

// left looks for remains of the cluster on the machine.
func (c *Cluster) left() (traces, err error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("look for leftovers: %w", err)
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, fmt.Errorf("look for leftovers: %w", err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, c.state()+"/") || strings.Contains(line, c.data()+"/") {
			traces = errors.Join(traces, fmt.Errorf("left behind: mount %s", strings.TrimSpace(line)))
		}
	}
	for _, file := range lines {
		line, err := os.ReadFile(file)
		if err == nil && (strings.Contains(string(line), c.state()+"/") || strings.Contains(string(line), c.data()+"/")) {
			traces = errors.Join(traces, fmt.Errorf("left behind: process %s: %q", filepath.Base(filepath.Dir(file)), line))
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/", "/sys/class/net/"} {
		found, err := filepath.Glob(pattern + c.Name + "-*")
		if err != nil {
			return nil, fmt.Errorf("look for leftovers: %w", err)
		}
		for _, path := range found {
			traces = errors.Join(traces, fmt.Errorf("left behind: %s", path))
		}
	}
	return traces, nil
}
