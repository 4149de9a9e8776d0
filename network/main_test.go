package network

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"github.com/micarun/mica/internal/patience"
	"github.com/micarun/mica/runtimeservice/podns"
)

// Variables that TestMain passes to its children: that the child is a node, and that it executes all
// plugins.
const (
	nodeVariable     = "MICA_NETWORK_TEST_NODE"
	executedVariable = "MICA_NETWORK_TEST_EXECUTED"
)

// TestMain runs the tests in their own network namespace, as a node. Bridges, rules and sysctls of
// the plugins affect nothing else and are removed with the namespace.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(nodeVariable) != "" {
		goleak.VerifyTestMain(m)
		return
	}
	// All tests run in both ways. Benchmarks compare the ways themselves.
	ways := []string{"", "1"}
	if flag.Parse(); flag.Lookup("test.bench").Value.String() != "" {
		ways = ways[:1]
	}
	for _, executed := range ways {
		if code := runOnNode(executed); code != 0 {
			os.Exit(code)
		}
	}
}

// runOnNode runs the tests in a new network namespace and returns the exit code.
func runOnNode(executed string) int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), nodeVariable+"=1", executedVariable+"="+executed)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return cmd.ProcessState.ExitCode()
}

const debianPlugins = "/usr/lib/cni"

func needNode(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("wiring network namespaces needs root")
	}
	if _, err := os.Stat(filepath.Join(debianPlugins, "bridge")); err != nil {
		t.Skip("needs the package containernetworking-plugins: ", err)
	}
	must(t, netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls until ok returns true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := patience.Of(time.Minute)
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

var counter atomic.Int32

// node is a Network under test with its own directories.
type node struct {
	*Network
	t    testing.TB
	opts Options
}

// newNode opens a network. At the end of the test it checks that nothing of it remains.
func newNode(t testing.TB, change func(*Options)) *node {
	t.Helper()
	needNode(t)
	i := counter.Add(1)
	dir := t.TempDir()
	n := &node{t: t, opts: Options{
		ConfDir:  filepath.Join(dir, "conf"),
		CacheDir: filepath.Join(dir, "cache"),
		BinDirs:  []string{filepath.Join(dir, "bin"), debianPlugins},
		Default: &DefaultNetwork{
			Name:   fmt.Sprintf("test%d", i),
			Bridge: fmt.Sprintf("mt%d", i),
			Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, byte(i), 0}), 24),
		},
		Timeout:   20 * time.Second,
		InProcess: os.Getenv(executedVariable) == "",
	}}
	must(t, os.Mkdir(filepath.Join(dir, "bin"), 0o755))
	if change != nil {
		change(&n.opts)
	}
	before := links(t)
	n.open()
	t.Cleanup(func() {
		must(t, n.RemoveDefault(context.Background()))
		must(t, n.Close())
		n.checkLeaks(before)
	})
	return n
}

func (n *node) open() {
	n.t.Helper()
	network, err := Open(context.Background(), n.opts)
	must(n.t, err)
	n.Network = network
}

// restart closes the network and opens it again.
func (n *node) restart() {
	n.t.Helper()
	must(n.t, n.Close())
	n.open()
}

func links(t testing.TB) []string {
	t.Helper()
	list, err := netlink.LinkList()
	must(t, err)
	var names []string
	for _, l := range list {
		names = append(names, l.Attrs().Name)
	}
	return names
}

// perPodChain matches the iptables chains that plugins make for one pod.
var perPodChain = regexp.MustCompile(`CNI-(DN-|SN-)?[0-9a-f]{20,}`)

func (n *node) checkLeaks(before []string) {
	t := n.t
	for _, dir := range []string{"attachments", "results"} {
		if names := files(t, filepath.Join(n.opts.CacheDir, dir)); len(names) != 0 {
			t.Errorf("left in %s: %v", dir, names)
		}
	}
	if held := n.leased(); len(held) != 0 {
		t.Errorf("leases left: %v", held)
	}
	var after []string
	eventually(t, "the kernel has removed the links of removed namespaces", func() bool {
		after = links(t)
		return len(after) <= len(before)
	})
	if fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("links before %v, after %v", before, after)
	}
	for _, save := range []string{"iptables-save", "ip6tables-save"} {
		if found := perPodChain.FindAllString(run(t, save), -1); len(found) != 0 {
			t.Errorf("%s: chains left: %v", save, found)
		}
	}
	if rules := run(t, "nft", "list", "ruleset"); n.opts.Default != nil && strings.Contains(rules, "mica-"+n.opts.Default.Name) || strings.Contains(rules, "mica/") {
		t.Errorf("nft tables left:\n%s", rules)
	}
}

// natRulesOf returns all packet filter rules that plugins make, by iptables or nftables.
func natRulesOf(t testing.TB) string {
	t.Helper()
	return run(t, "iptables-save", "-t", "nat") + run(t, "ip6tables-save", "-t", "nat") + run(t, "nft", "list", "ruleset")
}

func files(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// leased returns the leased addresses of the default network.
func (n *node) leased() []string {
	n.t.Helper()
	if n.opts.Default == nil {
		return nil
	}
	d, err := n.opts.Default.complete(n.opts.CacheDir)
	must(n.t, err)
	var found []string
	for _, name := range files(n.t, d.leases().Dir) {
		if _, err := netip.ParseAddr(name); err == nil {
			found = append(found, name)
		}
	}
	return found
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// newPod pins the namespaces of a pod and removes the pins at the end of the test. A test that adds
// the pod must delete it.
func newPod(t testing.TB) Pod {
	t.Helper()
	i := counter.Add(1)
	dir := filepath.Join(t.TempDir(), "pod")
	must(t, podns.Pin(t.Context(), podns.Args{Dir: dir, Net: true}))
	t.Cleanup(func() { must(t, podns.Unpin(dir)) })
	return Pod{
		ID:        fmt.Sprintf("%08x%056d", 0xabc000+int(i), 0),
		Name:      fmt.Sprintf("pod-%d", i),
		Namespace: "default",
		UID:       fmt.Sprintf("uid-%d", i),
		NetNS:     filepath.Join(dir, podns.Net),
	}
}

// add attaches a pod and detaches it at the end of the test.
func (n *node) add(pod Pod) Result {
	n.t.Helper()
	result, err := n.Add(n.t.Context(), pod)
	must(n.t, err)
	n.t.Cleanup(func() { must(n.t, n.Del(context.Background(), pod)) })
	return result
}

// attached attaches a new pod and detaches it at the end of the test.
func (n *node) attached(ports ...PortMapping) (Pod, netip.Addr) {
	n.t.Helper()
	pod := newPod(n.t)
	pod.PortMappings = ports
	return pod, n.add(pod).IPs[0]
}

// serve accepts TCP connections on port 80 inside a namespace and answers each with its source
// address.
func serve(t testing.TB, ns string) {
	t.Helper()
	var listener net.Listener
	must(t, podns.Do(ns, func() (err error) {
		listener, err = net.Listen("tcp", ":80")
		return err
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = fmt.Fprint(c, host)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = listener.Close(); <-done })
}

// askTimeout is longer than a busy machine takes to answer.
const askTimeout = 30 * time.Second

// ask connects from a namespace and returns the answer of a server of [serve].
func ask(ns, address string) (answer string, err error) {
	err = podns.Do(ns, func() error {
		c, err := net.DialTimeout("tcp", address, askTimeout)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(askTimeout))
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		answer = string(buf[:n])
		return err
	})
	return answer, err
}

// script installs a shell script as a plugin in the first plugin directory. The plugin saves the
// input of each command in <dir>/<name>.<command>.
func (n *node) script(name, body string) (log string) {
	n.t.Helper()
	return writeScript(n.t, n.opts.BinDirs[0], name, body)
}

func writeScript(t testing.TB, dir, name, body string) (log string) {
	t.Helper()
	log = filepath.Join(t.TempDir(), name)
	text := "#!/bin/sh\nlog=" + log + "\necho \"$CNI_COMMAND\" >>$log\ncat >$log.$CNI_COMMAND\nenv >$log.$CNI_COMMAND.env\n" + body + "\n"
	must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
	return log
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return string(data)
}

// configure writes a file into the configuration directory and waits until the network has loaded
// it.
func (n *node) configure(name, text string) {
	n.t.Helper()
	// By a rename, so that the network never reads the beginning of the file.
	written := filepath.Join(n.t.TempDir(), filepath.Base(name))
	must(n.t, os.WriteFile(written, []byte(text), 0o644))
	must(n.t, os.Rename(written, filepath.Join(n.opts.ConfDir, name)))
	n.awaitConf()
}

func (n *node) unconfigure(name string) {
	n.t.Helper()
	must(n.t, os.Remove(filepath.Join(n.opts.ConfDir, name)))
	n.awaitConf()
}

// awaitConf waits until the network has loaded what is in the configuration directory. A new
// load alone does not show that: it may be for an earlier change.
func (n *node) awaitConf() {
	n.t.Helper()
	eventually(n.t, "configuration read", func() bool {
		return n.current().describe() == loadConf(n.opts.ConfDir, n.Network.opts.Default).describe()
	})
}

// describe returns everything that a configuration has.
func (c *conf) describe() string {
	text := fmt.Sprint(c.source, c.err, c.broken)
	if c.list != nil {
		text += string(c.list.Bytes)
	}
	return text
}
