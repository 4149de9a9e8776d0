package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/osthread"
)

// pluginsVersion is the version of the CNI project's plugins that the tests compare with.
const pluginsVersion = "v1.10.0"

// Variables by which TestMain passes to its child that it is the node, and the plugins or why there
// are none.
const (
	nodeVariable    = "MICA_BUILTIN_TEST_NODE"
	pluginsVariable = "MICA_TEST_CNI_PLUGINS"
	failureVariable = "MICA_BUILTIN_TEST_FAILURE"
)

// TestMain builds the executables and runs the tests in their own network namespace, as a node.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(nodeVariable) != "" {
		os.Exit(m.Run())
	}
	dir, err := buildExecutables()
	failure := ""
	if err != nil {
		failure = err.Error()
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), nodeVariable+"=1", pluginsVariable+"="+dir, failureVariable+"="+failure)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

// buildExecutables builds the CNI project's plugins into the user's cache directory, unless they are
// there, and returns it. The variable MICA_TEST_CNI_PLUGINS names a directory of plugins to use
// instead.
func buildExecutables() (string, error) {
	if dir := os.Getenv(pluginsVariable); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil { // without HOME
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "mica-test", "cni-plugins-"+pluginsVersion)
	const module = "github.com/containernetworking/plugins/plugins/"
	args := []string{"install"}
	for _, plugin := range []string{"main/loopback", "main/bridge", "ipam/host-local", "meta/portmap"} {
		if _, err := os.Stat(filepath.Join(dir, filepath.Base(plugin))); err != nil {
			args = append(args, module+plugin+"@"+pluginsVersion)
		}
	}
	if len(args) == 1 {
		return dir, nil
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = "/" // outside the module
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("build the CNI plugins %s: %w: %s", pluginsVersion, err, out)
	}
	return dir, nil
}

// executables returns the directory of the CNI project's plugins.
func executables(t testing.TB) string {
	t.Helper()
	if failure := os.Getenv(failureVariable); failure != "" {
		t.Fatal(failure)
	}
	return os.Getenv(pluginsVariable)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("wiring network namespaces needs root")
	}
	must(t, netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}))
	// The node's interfaces need no duplicate address detection, which takes a second.
	trySysctl("ipv6/conf/default/accept_dad", "0")
}

// inProcess runs the plugins of this package for libcni.
type inProcess struct {
	version.PluginDecoder
	*Plugins
}

func (*inProcess) FindInPath(plugin string, _ []string) (string, error) { return plugin, nil }

func (e *inProcess) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	c := Call{Plugin: path, Config: stdin}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		switch name {
		case "CNI_COMMAND":
			c.Command = value
		case "CNI_CONTAINERID":
			c.ContainerID = value
		case "CNI_NETNS":
			c.NetNS = value
		case "CNI_IFNAME":
			c.IfName = value
		case "CNI_ARGS":
			c.Args = value
		}
	}
	return e.Run(ctx, c)
}

// cni is libcni with one implementation of the plugins.
type cni struct {
	t    testing.TB
	name string
	lib  *libcni.CNIConfig
	// plugins is nil for the executables.
	plugins *Plugins
}

func newInProcess(t testing.TB) cni {
	p := New(filepath.Join(t.TempDir(), "networks"))
	p.retireDelay = 50 * time.Millisecond
	t.Cleanup(func() {
		networks, err := p.Networks()
		must(t, err)
		for _, n := range networks {
			must(t, p.RemoveNetwork(n))
		}
		must(t, p.Close())
		if left := run(t, "nft", "list", "tables"); strings.Contains(left, tablePrefix) {
			t.Errorf("tables left: %s", left)
		}
	})
	return cni{t, "in process", libcni.NewCNIConfigWithCacheDir(nil, t.TempDir(), &inProcess{Plugins: p}), p}
}

func newExecutables(t testing.TB) cni {
	exe := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}}
	return cni{t, "executables", libcni.NewCNIConfigWithCacheDir([]string{executables(t)}, t.TempDir(), exe), nil}
}

// pod is a network namespace with the arguments of its attachment.
type pod struct {
	netNS string
	rt    *libcni.RuntimeConf
}

// newPod pins a network namespace until the end of the test, or until drop.
func newPod(t testing.TB, id string, capabilities map[string]any) pod {
	t.Helper()
	p := pod{netNS: newNamespace(t, id)}
	p.rt = &libcni.RuntimeConf{ContainerID: id, NetNS: p.netNS, IfName: "eth0", CapabilityArgs: capabilities}
	return p
}

func newNamespace(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, osthread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
	}))
	t.Cleanup(func() { drop(path) })
	return path
}

func drop(netNS string) { _ = unix.Unmount(netNS, unix.MNT_DETACH) }

// in runs f in a network namespace; "" is the node's.
func in(t testing.TB, netNS string, f func() error) error {
	t.Helper()
	if netNS == "" {
		return f()
	}
	ns, err := openNamespace(netNS)
	must(t, err)
	defer ns.close()
	return osthread.Run(func() error {
		if err := unix.Setns(ns.fd(), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

func parseList(t testing.TB, conflist string) *libcni.NetworkConfigList {
	t.Helper()
	list, err := libcni.NetworkConfFromBytes([]byte(conflist))
	must(t, err)
	return list
}

func (c cni) add(list *libcni.NetworkConfigList, p pod) types.Result {
	c.t.Helper()
	result, err := c.lib.AddNetworkList(context.Background(), list, p.rt)
	if err != nil {
		c.t.Fatalf("%s: ADD: %v", c.name, err)
	}
	return result
}

func (c cni) del(list *libcni.NetworkConfigList, p pod) {
	c.t.Helper()
	if err := c.lib.DelNetworkList(context.Background(), list, p.rt); err != nil {
		c.t.Fatalf("%s: DEL: %v", c.name, err)
	}
}

func (c cni) check(list *libcni.NetworkConfigList, p pod) error {
	return c.lib.CheckNetworkList(context.Background(), list, p.rt)
}

// addressOf returns the first address of a result that is IPv6 or not.
func addressOf(t testing.TB, result types.Result, ipv6 bool) string {
	t.Helper()
	r, err := types100.NewResultFromResult(result)
	must(t, err)
	for _, ip := range r.IPs {
		if (ip.Address.IP.To4() == nil) == ipv6 {
			return ip.Address.IP.String()
		}
	}
	t.Fatalf("no such address in %v", result)
	return ""
}

// serve answers TCP connections and UDP datagrams on a port in a namespace with the address of their
// source, until stop is called or the test ends. Its sockets keep the namespace alive.
func serve(t testing.TB, netNS string, port int) (stop func()) {
	t.Helper()
	var listener net.Listener
	var packets net.PacketConn
	must(t, in(t, netNS, func() (err error) {
		if listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); err != nil {
			return err
		}
		packets, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		return err
	}))
	stop = func() { _ = listener.Close(); _ = packets.Close() }
	t.Cleanup(stop)
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = c.Write([]byte(host))
			_ = c.Close()
		}
	}()
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(from.String())
			_, _ = packets.WriteTo([]byte(host), from)
		}
	}()
	return stop
}

// unreachable is the answer of [ask] without an answer.
const unreachable = "unreachable"

// ask connects from a namespace and returns the source address that the server of [serve] saw. It
// sends datagrams until one is answered.
func ask(t testing.TB, netNS, network, address string, limit time.Duration) string {
	t.Helper()
	answer := unreachable
	_ = in(t, netNS, func() error {
		for deadline := time.Now().Add(limit); answer == unreachable && time.Now().Before(deadline); {
			c, err := net.DialTimeout(network, address, time.Until(deadline))
			if err != nil {
				return err
			}
			_ = c.SetDeadline(deadline)
			if network == "udp" {
				_ = c.SetDeadline(time.Now().Add(time.Second))
			}
			buf := make([]byte, 100)
			if _, err := c.Write([]byte("x")); err == nil {
				if n, err := c.Read(buf); n > 0 && err == nil {
					answer = string(buf[:n])
				}
			}
			_ = c.Close()
		}
		return nil
	})
	return answer
}

func toJSON(t testing.TB, v any) string {
	t.Helper()
	data, err := json.MarshalIndent(v, "", "  ")
	must(t, err)
	return string(data)
}
