package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/runtimeservice/podns"
)

func commands(t testing.TB, log string) string {
	t.Helper()
	if _, err := os.Stat(log); err != nil {
		return ""
	}
	return strings.Join(strings.Fields(read(t, log)), " ")
}

// bridged returns a conflist with bridge and host-local, like the default network's, followed by
// more plugins.
func (n *node) bridged(version string, more ...string) string {
	d := n.opts.Default
	plugins := append([]string{fmt.Sprintf(
		`{"type":"bridge","bridge":%q,"isGateway":true,"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":%q}]]}}`,
		d.Bridge, filepath.Join(n.opts.CacheDir, "leases"), d.Subnet)}, more...)
	return fmt.Sprintf(`{"cniVersion":%q,"name":%q,"plugins":[%s]}`, version, d.Name, strings.Join(plugins, ","))
}

// pass is the body of a plugin that returns the previous plugin's result. libcni writes keys in
// sorted order; sed cuts off the keys after prevResult.
const pass = `[ $CNI_COMMAND != ADD ] || sed -e 's/.*"prevResult"://' -e 's/,"runtimeConfig":.*//' -e 's/,"type":"[a-z]*"}$//' $log.ADD`

func TestPluginsGetWhatKubernetesSends(t *testing.T) {
	n := newNode(t, nil)
	log := n.script("spy", pass)
	n.configure("10.conflist", n.bridged("1.0.0",
		`{"type":"spy","capabilities":{"portMappings":true,"bandwidth":true,"dns":true,"ips":true,"mac":true,"cgroupPath":true,"aliases":true}}`))
	pod := newPod(t)
	pod.PortMappings = []PortMapping{
		{HostPort: 1, ContainerPort: 2, Protocol: "TCP"},
		{HostPort: 0, ContainerPort: 3},
		{HostPort: 4, ContainerPort: 5, Protocol: "UDP", HostIP: "127.0.0.1"},
		{HostPort: 6, ContainerPort: 7, Protocol: "SCTP", HostIP: "::1"},
	}
	pod.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "1M", "kubernetes.io/egress-bandwidth": "2k"}
	pod.CgroupParent = "/kubepods/a"
	pod.DNS = DNS{Servers: []string{"10.0.0.10"}, Searches: []string{"svc"}, Options: []string{"ndots:5"}}
	pod.IPs = []netip.Prefix{netip.MustParsePrefix("10.1.2.3/24")}
	pod.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	n.add(pod)

	var input struct {
		RuntimeConfig map[string]any
		PrevResult    struct{ IPs []any }
	}
	must(t, json.Unmarshal([]byte(read(t, log+".ADD")), &input))
	want := map[string]any{
		"portMappings": []any{
			map[string]any{"hostPort": 1.0, "containerPort": 2.0, "protocol": "tcp"},
			map[string]any{"hostPort": 4.0, "containerPort": 5.0, "protocol": "udp", "hostIP": "127.0.0.1"},
			map[string]any{"hostPort": 6.0, "containerPort": 7.0, "protocol": "sctp", "hostIP": "::1"},
		},
		"bandwidth": map[string]any{
			"ingressRate": 1e6, "ingressBurst": 4294967295.0, "egressRate": 2e3, "egressBurst": 4294967295.0,
		},
		"dns":        map[string]any{"servers": []any{"10.0.0.10"}, "searches": []any{"svc"}, "options": []any{"ndots:5"}},
		"ips":        []any{"10.1.2.3/24"},
		"mac":        "02:00:00:00:00:01",
		"cgroupPath": "/kubepods/a",
	}
	if diff := cmp.Diff(want, input.RuntimeConfig); diff != "" {
		t.Errorf("runtimeConfig (-want +got):\n%s", diff)
	}
	if len(input.PrevResult.IPs) != 1 {
		t.Errorf("prevResult = %+v", input.PrevResult)
	}
	env := strings.Split(read(t, log+".ADD.env"), "\n")
	for _, want := range []string{
		"CNI_CONTAINERID=" + pod.ID, "CNI_IFNAME=eth0", "CNI_NETNS=" + pod.NetNS,
		"CNI_PATH=" + strings.Join(n.opts.BinDirs, ":"),
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + pod.Name +
			";K8S_POD_INFRA_CONTAINER_ID=" + pod.ID + ";K8S_POD_UID=" + pod.UID,
	} {
		if !contains(env, want) {
			t.Errorf("environment lacks %s", want)
		}
	}
	// DEL gets the same arguments, although the caller passes only the ID.
	must(t, n.Del(t.Context(), Pod{ID: pod.ID}))
	input.RuntimeConfig = nil
	must(t, json.Unmarshal([]byte(read(t, log+".DEL")), &input))
	if diff := cmp.Diff(want, input.RuntimeConfig); diff != "" {
		t.Errorf("runtimeConfig of DEL (-want +got):\n%s", diff)
	}
}

func TestAttachmentIsShownAsContainerdDoes(t *testing.T) {
	n := newNode(t, nil)
	pod := newPod(t)
	if shown, err := n.Attachment(pod.ID); shown != nil || err != nil {
		t.Errorf("before: %s, %v", shown, err)
	}
	address := n.add(pod).IPs[0]
	shown, err := n.Attachment(pod.ID)
	must(t, err)
	var result verboseResult
	must(t, json.Unmarshal(shown, &result))
	eth0 := result.Interfaces["eth0"]
	gateway := n.opts.Default.Subnet.Addr().Next()
	if eth0 == nil || eth0.Mac == "" || eth0.Sandbox != pod.NetNS || !cmp.Equal(eth0.IPConfigs, []verboseIP{{IP: address.String(), Gateway: gateway.String()}}) {
		t.Errorf("result is %s", shown)
	}
	must(t, n.Del(t.Context(), pod))
	if shown, err := n.Attachment(pod.ID); shown != nil || err != nil {
		t.Errorf("after: %s, %v", shown, err)
	}
}

func contains(list []string, item string) bool {
	for _, s := range list {
		if s == item {
			return true
		}
	}
	return false
}

// Del works although the configuration, the records or the namespace changed since Add.
func TestDelAfter(t *testing.T) {
	for name, meanwhile := range map[string]func(n *node, pod Pod){
		"nothing": func(*node, Pod) {},
		"restart": func(n *node, _ Pod) { n.restart() },
		"namespace gone": func(n *node, pod Pod) {
			must(n.t, podns.Unpin(filepath.Dir(pod.NetNS)))
		},
		"namespace gone and a file in its place": func(n *node, pod Pod) {
			must(n.t, podns.Unpin(filepath.Dir(pod.NetNS)))
			must(n.t, os.WriteFile(pod.NetNS, nil, 0o600))
		},
		"namespace gone and restart": func(n *node, pod Pod) {
			must(n.t, podns.Unpin(filepath.Dir(pod.NetNS)))
			n.restart()
		},
		"another configuration": func(n *node, _ Pod) {
			n.configure("10.conflist", `{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"no-such-plugin"}]}`)
		},
		"broken configuration and restart": func(n *node, _ Pod) {
			n.configure("10.conflist", `{`)
			n.restart()
		},
		"no default network any more": func(n *node, _ Pod) {
			keep := n.opts.Default
			n.opts.Default = nil
			n.restart()
			n.t.Cleanup(func() { n.opts.Default = keep; n.restart() })
		},
		"torn record": func(n *node, pod Pod) {
			must(n.t, os.WriteFile(n.records.path(pod.ID), []byte(`{"PodID":`), 0o600))
		},
		"lost record": func(n *node, pod Pod) {
			must(n.t, os.Remove(n.records.path(pod.ID)))
		},
		"no cached result": func(n *node, _ Pod) {
			must(n.t, os.RemoveAll(filepath.Join(n.opts.CacheDir, "results")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, nil)
			pod := newPod(t)
			pod.PortMappings = []PortMapping{{HostPort: 8080, ContainerPort: 80}}
			_, err := n.Add(t.Context(), pod)
			must(t, err)
			if held := n.leased(); len(held) != 1 {
				t.Fatalf("leases after Add: %v", held)
			}
			meanwhile(n, pod)
			for range 2 {
				must(t, n.Del(t.Context(), Pod{ID: pod.ID}))
			}
			// newNode checks for leftovers.
		})
	}
}

func TestDelOfUnknownPod(t *testing.T) {
	n := newNode(t, nil)
	must(t, n.Del(t.Context(), newPod(t)))
	if err := n.Check(t.Context(), newPod(t)); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Check of a pod that is not attached = %v", err)
	}
}

func TestAddTwice(t *testing.T) {
	n := newNode(t, nil)
	pod := newPod(t)
	n.add(pod)
	if _, err := n.Add(t.Context(), pod); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("second Add = %v, want ErrAlreadyExists", err)
	}
	if held := n.leased(); len(held) != 1 {
		t.Errorf("leases after the second Add: %v", held)
	}
}

// A crash during ADD leaves the record and part of the attachment. The next Add removes these
// first.
func TestAddAfterInterruptedAdd(t *testing.T) {
	n := newNode(t, nil)
	pod := newPod(t)
	_, err := n.Add(t.Context(), pod)
	must(t, err)
	must(t, os.RemoveAll(filepath.Join(n.opts.CacheDir, "results"))) // libcni writes the result last
	n.restart()
	n.add(pod)
	if held := n.leased(); len(held) != 1 {
		t.Errorf("leases: %v", held)
	}
}

func TestAddRefuses(t *testing.T) {
	n := newNode(t, nil)
	good := newPod(t)
	plain := filepath.Join(t.TempDir(), "plain")
	must(t, os.WriteFile(plain, nil, 0o600))
	for name, change := range map[string]func(*Pod){
		"no ID":               func(p *Pod) { p.ID = "" },
		"ID with a path":      func(p *Pod) { p.ID = "../x" },
		"hidden ID":           func(p *Pod) { p.ID = ".x" },
		"no namespace":        func(p *Pod) { p.NetNS = "" },
		"namespace not there": func(p *Pod) { p.NetNS = "/none" },
		"plain file":          func(p *Pod) { p.NetNS = plain },
		"port out of range":   func(p *Pod) { p.PortMappings = []PortMapping{{HostPort: 70000, ContainerPort: 1}} },
		"no container port":   func(p *Pod) { p.PortMappings = []PortMapping{{HostPort: 1}} },
		"protocol":            func(p *Pod) { p.PortMappings = []PortMapping{{HostPort: 1, ContainerPort: 1, Protocol: "icmp"}} },
		"host IP":             func(p *Pod) { p.PortMappings = []PortMapping{{HostPort: 1, ContainerPort: 1, HostIP: "host"}} },
		"bandwidth":           func(p *Pod) { p.Annotations = map[string]string{ingressAnnotation: "fast"} },
	} {
		t.Run(name, func(t *testing.T) {
			pod := good
			change(&pod)
			if _, err := n.Add(t.Context(), pod); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("Add = %v, want ErrInvalidArgument", err)
			}
		})
	}
}

// The second of two plugins fails: Add undoes the first, and its error names the plugin, the stage
// and the pod.
func TestAddThatFailsMidway(t *testing.T) {
	n := newNode(t, nil)
	log := n.script("fails", `[ $CNI_COMMAND != ADD ] || { echo '{"cniVersion":"1.0.0","code":11,"msg":"not today","details":"try later"}'; exit 1; }`)
	n.configure("10.conflist", n.bridged("1.0.0", `{"type":"fails"}`))
	pod := newPod(t)
	_, err := n.Add(t.Context(), pod)
	if err == nil {
		t.Fatal("Add succeeded")
	}
	want := fmt.Sprintf("add network %s to pod default/%s (%s): plugin fails: ADD: not today; try later", n.opts.Default.Name, pod.Name, pod.ID[:12])
	if err.Error() != want {
		t.Errorf("error %q\nwant  %q", err, want)
	}
	var said *types.Error
	if !errors.As(err, &said) || said.Code != types.ErrTryAgainLater {
		t.Errorf("%v holds no CNI error with its code", err)
	}
	if got := commands(t, log); got != "ADD DEL" {
		t.Errorf("plugin saw %s", got)
	}
	if held := n.leased(); len(held) != 0 {
		t.Errorf("leases left: %v", held)
	}
	if stats, err := Stats(pod.NetNS); err != nil || len(stats) != 0 {
		t.Errorf("interfaces left: %v, %v", stats, err)
	}
}

// If the undo fails too, the record stays and the error says so.
func TestAddThatFailsAndDelThatFails(t *testing.T) {
	n := newNode(t, nil)
	n.script("fails", "echo broken >&2; exit 3")
	n.configure("10.conflist", n.bridged("1.0.0", `{"type":"fails"}`))
	pod := newPod(t)
	_, err := n.Add(t.Context(), pod)
	if err == nil || !strings.Contains(err.Error(), "plugin fails: ADD: exit status 3: broken; detach again: plugin fails: DEL: exit status 3: broken") {
		t.Errorf("Add = %v", err)
	}
	if err := n.Del(t.Context(), pod); err == nil {
		t.Error("Del succeeded although the plugin fails")
	}
	n.script("fails", "")
	must(t, n.Del(t.Context(), pod))
}

// hanging configures a plugin that starts a child process and never returns from ADD. It writes
// both process IDs to the returned file.
func (n *node) hanging() (pids string) {
	pids = filepath.Join(n.t.TempDir(), "pids")
	n.script("hangs", "[ $CNI_COMMAND != ADD ] || { sleep 1000 & echo $! $$ >"+pids+".new; mv "+pids+".new "+pids+"; wait; }")
	n.configure("10.conflist", n.bridged("1.0.0", `{"type":"hangs"}`))
	return pids
}

// checkKilled expects err to say that the plugin was killed for the given reason, and its processes
// to be gone.
func (n *node) checkKilled(err, reason error, pids string) {
	n.t.Helper()
	if !errors.Is(err, reason) || !strings.Contains(err.Error(), "plugin hangs: ADD: killed") {
		n.t.Errorf("Add = %v, want %v naming the plugin", err, reason)
	}
	for _, text := range strings.Fields(read(n.t, pids)) {
		pid, err := strconv.Atoi(text)
		must(n.t, err)
		eventually(n.t, "process "+text+" gone", func() bool { return gone(pid) })
	}
}

func TestPluginThatHangs(t *testing.T) {
	n := newNode(t, nil)
	pids := n.hanging()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(pids); err == nil {
				break
			}
		}
		cancel()
	}()
	_, err := n.Add(ctx, newPod(t))
	n.checkKilled(err, context.Canceled, pids)
	if held := n.leased(); len(held) != 0 {
		t.Errorf("leases left: %v", held)
	}
}

// Add's undo has the same timeout as Add. On a busy machine it may be too short; then a later Del
// with a longer timeout removes the rest.
func TestPluginThatHangsTooLong(t *testing.T) {
	for timeout := 500 * time.Millisecond; ; timeout *= 2 {
		n := newNode(t, func(o *Options) { o.Timeout = timeout })
		pids := n.hanging()
		pod := newPod(t)
		_, err := n.Add(t.Context(), pod)
		n.opts.Timeout = 20 * time.Second
		n.restart()
		must(t, n.Del(t.Context(), pod))
		if _, statErr := os.Stat(pids); statErr != nil && errors.Is(err, context.DeadlineExceeded) && timeout < 20*time.Second {
			continue // the timeout ended before this plugin ran
		}
		n.checkKilled(err, context.DeadlineExceeded, pids)
		if held := n.leased(); len(held) != 0 {
			t.Errorf("leases left: %v", held)
		}
		return
	}
}

// gone reports whether a process has exited; a zombie counts.
func gone(pid int) bool {
	if unix.Kill(pid, 0) != nil {
		return true
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(data), ") Z ")
}

func TestPluginThatPrintsWithoutEnd(t *testing.T) {
	n := newNode(t, nil)
	n.script("chatty", "[ $CNI_COMMAND != ADD ] || yes")
	n.configure("10.conflist", n.bridged("1.0.0", `{"type":"chatty"}`))
	if _, err := n.Add(t.Context(), newPod(t)); err == nil || !strings.Contains(err.Error(), "plugin chatty: ADD:") {
		t.Errorf("Add = %v", err)
	}
}

func TestPluginWithoutAddress(t *testing.T) {
	n := newNode(t, nil)
	n.script("empty", `[ $CNI_COMMAND != ADD ] || echo '{"cniVersion":"1.0.0"}'`)
	n.configure("10.conflist", n.bridged("1.0.0", `{"type":"empty"}`))
	if _, err := n.Add(t.Context(), newPod(t)); err == nil || !strings.Contains(err.Error(), "no address") {
		t.Errorf("Add = %v", err)
	}
}

func TestMissingPlugin(t *testing.T) {
	for _, plugin := range []string{"bridge", "host-local", "portmap"} {
		t.Run(plugin, func(t *testing.T) {
			n := newNode(t, func(o *Options) { o.BinDirs, o.InProcess = o.BinDirs[:1], false })
			install := func(name string) {
				must(t, os.Symlink(filepath.Join(debianPlugins, name), filepath.Join(n.opts.BinDirs[0], name)))
			}
			remove := func() { must(t, os.Remove(filepath.Join(n.opts.BinDirs[0], plugin))) }
			for _, name := range []string{"bridge", "host-local", "portmap"} {
				install(name)
			}
			must(t, n.Status(t.Context()))
			pod := newPod(t)
			_, err := n.Add(t.Context(), pod)
			must(t, err)

			remove()
			if err := n.Status(t.Context()); !errors.Is(err, ErrPluginMissing) || !errors.Is(err, errdefs.ErrUnavailable) {
				t.Errorf("Status = %v", err)
			}
			if _, err := n.Add(t.Context(), newPod(t)); !errors.Is(err, ErrPluginMissing) || !strings.Contains(err.Error(), "plugin "+plugin+":") {
				t.Errorf("Add = %v, want ErrPluginMissing naming it", err)
			}
			err = n.Del(t.Context(), pod)
			if !errors.Is(err, ErrPluginMissing) || !strings.Contains(err.Error(), "plugin "+plugin+":") {
				t.Errorf("Del = %v, want ErrPluginMissing naming it", err)
			}
			if held := n.leased(); len(held) != 0 {
				t.Errorf("leases not released although only a plugin is missing: %v", held)
			}
			if err := n.Sweep(t.Context(), nil); !errors.Is(err, ErrPluginMissing) {
				t.Errorf("GC = %v", err)
			}
			install(plugin)
			must(t, n.Sweep(t.Context(), nil))
		})
	}
}

// Del reports the failure of a plugin that exists, not ErrPluginMissing, if another plugin is
// missing.
func TestMissingPluginAndFailingOne(t *testing.T) {
	n := newNode(t, nil)
	n.script("gone", pass)
	n.script("fails", pass+"; [ $CNI_COMMAND != DEL ] || exit 1")
	n.configure("10.conflist", n.bridged("1.0.0", `{"type":"gone"}`, `{"type":"fails"}`))
	pod := newPod(t)
	_, err := n.Add(t.Context(), pod)
	must(t, err)
	must(t, os.Remove(filepath.Join(n.opts.BinDirs[0], "gone")))
	err = n.Del(t.Context(), pod)
	if err == nil || errors.Is(err, ErrPluginMissing) || !strings.Contains(err.Error(), "plugin fails:") || !strings.Contains(err.Error(), "plugin gone:") {
		t.Errorf("Del = %v", err)
	}
	n.script("fails", "")
	n.script("gone", "")
	must(t, n.Del(t.Context(), pod))
}

func TestPluginBeingInstalled(t *testing.T) {
	n := newNode(t, nil)
	log := n.script("late", pass)
	n.configure("10.conflist", n.bridged("1.0.0", `{"type":"late"}`))
	path := filepath.Join(n.opts.BinDirs[0], "late")
	// ETXTBSY concerns only the executable itself, not a script.
	script := path + ".sh"
	must(t, os.Rename(path, script))
	must(t, os.WriteFile(path, []byte(read(t, "/bin/cat")), 0o755))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	done := make(chan error, 1)
	pod := newPod(t)
	go func() {
		_, err := n.Add(t.Context(), pod)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("Add did not wait: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	must(t, os.Rename(script, path)) // before the close, after which the executable could be run
	must(t, f.Close())
	must(t, <-done)
	if got := commands(t, log); got != "ADD" {
		t.Errorf("plugin saw %q", got)
	}
	must(t, n.Del(t.Context(), pod))
}

// Plugins with old CNI versions work.
func TestOldVersions(t *testing.T) {
	for _, version := range []string{"", "0.2.0", "0.3.1", "0.4.0", "1.0.0"} {
		t.Run("version "+version, func(t *testing.T) {
			n := newNode(t, nil)
			n.configure("10.conflist", n.bridged(version))
			must(t, n.Status(t.Context()))
			pod := newPod(t)
			result, err := n.Add(t.Context(), pod)
			must(t, err)
			if len(result.IPs) != 1 || !n.opts.Default.Subnet.Contains(result.IPs[0]) {
				t.Errorf("addresses = %v", result.IPs)
			}
			must(t, n.Check(t.Context(), pod))
			must(t, n.Del(t.Context(), pod))
		})
	}
}

func TestHostPortsWithoutPortmapAreIgnored(t *testing.T) {
	n := newNode(t, nil)
	n.configure("10.conflist", n.bridged("1.0.0"))
	said := 0
	log := funcr.New(func(_, text string) { said += strings.Count(text, "Host ports are ignored") }, funcr.Options{})
	for range 2 {
		pod := newPod(t)
		pod.PortMappings = []PortMapping{{HostPort: 80, ContainerPort: 80}}
		_, err := n.Add(klog.NewContext(t.Context(), log), pod)
		must(t, err)
		must(t, n.Del(t.Context(), pod))
	}
	if said != 1 {
		t.Errorf("logged %d times, want once", said)
	}
}

// portmap runs only for pods with host ports, and then for DEL as well.
func TestPortmapRunsOnlyForHostPorts(t *testing.T) {
	for ports, want := range map[int]string{0: "", 1: "ADD CHECK DEL"} {
		n := newNode(t, func(o *Options) { o.InProcess = false })
		log := n.script("portmap", pass)
		pod := newPod(t)
		pod.PortMappings = []PortMapping{{HostPort: 80, ContainerPort: 80}}[:ports]
		result, err := n.Add(t.Context(), pod)
		must(t, err)
		if len(result.IPs) != 1 {
			t.Errorf("%d ports: addresses %v", ports, result.IPs)
		}
		must(t, n.Check(t.Context(), pod))
		must(t, n.Del(t.Context(), pod))
		if got := commands(t, log); got != want {
			t.Errorf("%d ports: portmap saw %q, want %q", ports, got, want)
		}
	}
}

func TestCheckSeesDamage(t *testing.T) {
	n := newNode(t, nil)
	pod, ip := n.attached()
	must(t, n.Check(t.Context(), pod))
	run(t, "nsenter", "--net="+pod.NetNS, "ip", "addr", "del", ip.String()+"/24", "dev", "eth0")
	want := fmt.Sprintf("check network of pod default/%s (%s): plugin bridge: CHECK: ", pod.Name, pod.ID[:12])
	if err := n.Check(t.Context(), pod); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("Check = %v, want %s…", err, want)
	}
}

// The bandwidth plugin creates an interface on the node, too.
func TestBandwidth(t *testing.T) {
	n := newNode(t, nil)
	n.configure("10.conflist", n.bridged("1.0.0", `{"type":"bandwidth","capabilities":{"bandwidth":true}}`))
	pod := newPod(t)
	pod.Annotations = map[string]string{ingressAnnotation: "8M", egressAnnotation: "4M"}
	n.add(pod)
	if rules := run(t, "tc", "qdisc"); !strings.Contains(rules, "rate 8Mbit") || !strings.Contains(rules, "rate 4Mbit") {
		t.Errorf("queues:\n%s", rules)
	}
}

func TestOperationsOnOnePodAreSerial(t *testing.T) {
	n := newNode(t, nil)
	pod := newPod(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := n.Add(t.Context(), pod); err != nil && !errors.Is(err, errdefs.ErrAlreadyExists) {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if err := n.Del(t.Context(), pod); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	must(t, n.Del(t.Context(), pod))
	if len(n.pods.locks) != 0 {
		t.Errorf("locks left: %v", n.pods.locks)
	}
}

func TestPodLocks(t *testing.T) {
	var locks podLocks
	unlock, err := locks.lock(t.Context(), "a")
	must(t, err)
	other, err := locks.lock(t.Context(), "b")
	must(t, err)
	other()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := locks.lock(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("lock of a held pod = %v", err)
	}
	unlock()
	unlock, err = locks.lock(t.Context(), "a")
	must(t, err)
	unlock()
	if len(locks.locks) != 0 {
		t.Errorf("locks left: %v", locks.locks)
	}
}
