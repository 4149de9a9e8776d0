package e2e

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pods with and without a user namespace may set sysctls of their network interface, which exists
// only after the network setup. If a sysctl cannot be set, the network is removed.
func TestSysctlsOfInterfaces(t *testing.T) {
	f := start(t)
	sysctls := map[string]string{"net.ipv4.conf.eth0.arp_ignore": "1\n", "net/ipv4/neigh/eth0/gc_stale_time": "77"}
	const script = "cd /proc/sys/net/ipv4; cat conf/eth0/arp_ignore neigh/eth0/gc_stale_time"
	config := f.podConfig()
	config.Linux.Sysctls = sysctls
	if got := f.output(f.runPod(config), f.containerConfig(busyboxImage, "sh", "-c", script)); got != "1\n77\n" {
		t.Errorf("sysctls are %q", got)
	}
	wrong := f.podConfig()
	wrong.Linux.Sysctls = map[string]string{"net.ipv4.conf.eth7.arp_ignore": "1"}
	if _, err := f.Runtime.RunPodSandbox(f.ctx, wrong, ""); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("interface that the pod does not have: %v", err)
	}
	mapped := f.podConfig()
	mapped.Linux.Sysctls = sysctls
	mapped.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: userNamespace()}}
	f.userPod() // skips without user namespaces
	container := f.userContainer(runtimeapi.NamespaceMode_CONTAINER, busyboxImage, "sh", "-c", script)
	if got := f.output(f.runPod(mapped), container); got != "1\n77\n" {
		t.Errorf("with a user namespace sysctls are %q", got)
	}
}
