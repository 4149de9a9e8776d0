package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/node"
)

// nginx from Debian can be reached from the host by the pod's address and by a host port, and from
// a second pod.
func TestNginxOnTheBridge(t *testing.T) {
	f := start(t)
	config := f.podConfig()
	hostPort := f.freePort()
	config.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: int32(hostPort)}}
	p := f.runPod(config)
	server := f.containerConfig(nginxImage)
	f.start(p, server)
	const page = "Welcome to nginx on Mica"
	for name, address := range map[string]string{
		"pod address": fmt.Sprintf("http://%s/", f.ip(p)),
		"host port":   fmt.Sprintf("http://127.0.0.1:%d/", hostPort),
	} {
		f.eventually("nginx answers on the "+name, func() bool {
			body, err := get(f.ctx, address)
			return err == nil && strings.Contains(body, page)
		})
	}
	client := f.containerConfig(busyboxImage, "wget", "-q", "-O", "-", "http://"+f.ip(p)+"/")
	if got := f.output(f.runPod(f.podConfig()), client); !strings.Contains(got, page) {
		t.Errorf("second pod received %q", got)
	}
	f.eventually("the log contains the requests", func() bool {
		return strings.Contains(text(f.log(p, server)), "GET / HTTP/1.1")
	})
	f.no(f.Runtime.StopPodSandbox(f.ctx, p.id))
	if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", hostPort)); err == nil {
		_ = conn.Close()
		t.Error("the host port answers after the pod was stopped")
	}
}

func TestPodNetworkInside(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	script := "ip -o -4 addr show dev eth0 | awk '{print $4}'; ip -o -4 addr show dev lo | awk '{print $4}'; ping -c 1 -W 2 127.0.0.1 >/dev/null && echo loopback"
	want := fmt.Sprintf("%s/24\n127.0.0.1/8\nloopback\n", f.ip(p))
	if got := f.output(p, f.containerConfig(busyboxImage, "sh", "-c", script)); got != want {
		t.Errorf("addresses are %q, want %q", got, want)
	}
	if address := net.ParseIP(f.ip(p)); address == nil || !f.Subnet.Contains(netipOf(address)) {
		t.Errorf("address %s is not in %s", f.ip(p), f.Subnet)
	}
}

func TestHostNetwork(t *testing.T) {
	f := start(t)
	config := f.podConfig()
	options := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}
	config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: options}
	p := f.runPod(config)
	container := f.containerConfig(busyboxImage, "readlink", "/proc/self/ns/net")
	container.Linux.SecurityContext.NamespaceOptions = options
	if got, want := f.output(p, container), namespaceOf(t, "net")+"\n"; got != want {
		t.Errorf("network namespace is %q, want the node's %q", got, want)
	}
	response, err := f.Runtime.PodSandboxStatus(f.ctx, p.id, false)
	f.no(err)
	if mode := response.Status.GetLinux().GetNamespaces().GetOptions().GetNetwork(); mode != runtimeapi.NamespaceMode_NODE {
		t.Errorf("network mode in the status is %v", mode)
	}
}

func TestNetworkNamespaceIsDroppedWithThePod(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	first := f.output(p, f.containerConfig(busyboxImage, "readlink", "/proc/self/ns/net"))
	second := f.output(p, f.containerConfig(busyboxImage, "readlink", "/proc/self/ns/net"))
	if first != second || first == namespaceOf(t, "net")+"\n" {
		t.Errorf("containers of one pod are in %q and %q", first, second)
	}
	f.no(f.Runtime.StopPodSandbox(f.ctx, p.id))
	census, err := f.Census(f.ctx)
	f.no(err)
	if leases := census["lease"]; len(leases) > 0 {
		t.Errorf("after the stop the pod still has %q", leases)
	}
}

// When the kubelet sends the pod CIDR, the daemon writes a network configuration from the template,
// and pods get addresses of that CIDR.
func TestPodCIDR(t *testing.T) {
	var conf string
	f := startOn(t, func(o *node.Options) {
		conf = filepath.Join(o.Data, "own.d")
		o.ConfDir = conf
		template := filepath.Join(o.Data, "template")
		files := map[string]string{
			template: `{"cniVersion": "1.0.0", "name": "` + o.Name + `", "plugins": [{"type": "bridge", "bridge": "` + o.Name + `", "isGateway": true,
				"ipam": {"type": "host-local", "dataDir": "` + o.Data + `/network/leases", "ranges": [[{"subnet": "{{.PodCIDR}}"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`,
			filepath.Join(o.Data, "conf.d", "template.toml"): fmt.Sprintf("[network]\nconf_template = %q\n", template),
		}
		for name, content := range files {
			if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
	})
	ready := func() bool {
		status, err := f.Runtime.Status(f.ctx, false)
		f.no(err)
		return status.Status.Conditions[1].Status
	}
	if ready() {
		t.Error("the network is ready without a configuration")
	}
	cidr := netip.PrefixFrom(f.Subnet.Addr(), 26).String()
	f.no(f.Runtime.UpdateRuntimeConfig(f.ctx, &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}}))
	f.eventually("the network is ready", ready)
	p := f.runPod(f.podConfig())
	want := "/26\n"
	if got := f.output(p, f.containerConfig(busyboxImage, "sh", "-c", "ip -o -4 addr show dev eth0 | awk '{print $4}'")); got != f.ip(p)+want || !netip.MustParsePrefix(cidr).Contains(netip.MustParseAddr(f.ip(p))) {
		t.Errorf("the pod has the address %q, want one of %s", got, cidr)
	}
	f.no(f.RemovePod(f.ctx, p.id))
	if written, err := filepath.Glob(filepath.Join(conf, "*.conflist")); err != nil || len(written) != 1 {
		t.Errorf("configurations are %q, %v; want one", written, err)
	}
}
