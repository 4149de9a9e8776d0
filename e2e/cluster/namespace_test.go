package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/micarun/mica/e2e/cluster"
)

// Root in a pod with hostUsers: false is root only in the pod, and the pod's volumes belong to it.
func TestUserNamespace(t *testing.T) {
	f := start(t)
	f.kubectl("create", "configmap", "settings", "--from-literal=color=blue")
	f.pod("main", `
	hostUsers: false
	containers:
	- name: main
		image: `+cluster.Busybox+`
		command: [sleep, infinity]
		volumeMounts: [{name: settings, mountPath: /settings}, {name: scratch, mountPath: /scratch}, {name: memory, mountPath: /memory}]
	volumes:
	- {name: settings, configMap: {name: settings}}
	- {name: scratch, emptyDir: {}}
	- {name: memory, emptyDir: {medium: Memory}}
`)
	f.awaitPod("main", ready)
	fields := strings.Fields(f.exec("main", "cat /proc/self/uid_map"))
	if len(fields) != 3 || fields[0] != "0" || fields[1] == "0" || fields[2] != "65536" {
		t.Fatalf("user IDs are mapped %q", fields)
	}
	if out := f.exec("main", "id -u; cat /settings/color; touch /scratch/x /memory/x /x && stat -c %u /scratch/x /memory/x /x /bin/busybox /settings/color"); out != "0\nblue0\n0\n0\n0\n0\n" {
		t.Errorf("inside: %q", out)
	}
}

func TestHostNetwork(t *testing.T) {
	f := start(t)
	f.pod("main", `
	hostNetwork: true
	hostPID: true
	hostIPC: true
	containers: [{name: main, image: "`+cluster.Agnhost+`", args: [netexec, --http-port=28080]}]
`)
	pod := f.awaitPod("main", ready)
	n := f.node(pod)
	if pod.Status.PodIP != n.IP.String() {
		t.Errorf("address is %s, the node's is %s", pod.Status.PodIP, n.IP)
	}
	f.await("an answer", func(ctx context.Context) error {
		_, err := f.fetch(ctx, n, "http://127.0.0.1:28080/echo?msg=hello")
		return err
	})
	if out := f.exec("main", "ps"); !strings.Contains(out, "kubelet") {
		t.Errorf("processes are %s", out)
	}
}

// A host port can be reached on the node's address, from another node as well as from the node
// itself.
func TestHostPort(t *testing.T) {
	f := start(t)
	f.pod("main", `
	containers: [{name: main, image: "`+cluster.Agnhost+`", args: [netexec, --http-port=8080], ports: [{containerPort: 8080, hostPort: 28081}]}]
`)
	pod := f.awaitPod("main", ready)
	n := f.node(pod)
	for _, from := range f.Nodes {
		f.await("an answer to "+from.Name, func(ctx context.Context) error {
			answer, err := f.fetch(ctx, from, fmt.Sprintf("http://%s:28081/hostname", n.IP))
			if err == nil && answer != "main" {
				err = fmt.Errorf("the answer is %q", answer)
			}
			return err
		})
	}
	f.delete("main")
	f.await("the host port to be closed", func(ctx context.Context) error {
		if _, err := f.fetch(ctx, n, fmt.Sprintf("http://%s:28081/hostname", n.IP)); err != nil {
			return nil //nolint:nilerr // the error is expected
		}
		return errors.New("the host port still answers")
	})
}

func TestShareProcessNamespace(t *testing.T) {
	f := start(t)
	f.pod("main", `
	shareProcessNamespace: true
	containers:
	- {name: one, image: "`+cluster.Busybox+`", command: [sleep, "1111"]}
	- {name: two, image: "`+cluster.Busybox+`", command: [sleep, "2222"]}
`)
	f.awaitPod("main", ready)
	out := f.exec("main", "ps")
	for _, process := range []string{"sleep 1111", "sleep 2222"} {
		if !strings.Contains(out, process) {
			t.Errorf("no %s in %s", process, out)
		}
	}
	if strings.Contains(out, "kubelet") {
		t.Errorf("the node's processes show: %s", out)
	}
	// The other container's process can receive signals, and its container is restarted.
	f.exec("main", "kill $(pgrep -f 'sleep 222[2]')")
	f.awaitPod("main", func(pod corev1.Pod) error {
		for _, c := range pod.Status.ContainerStatuses {
			if c.Name == "two" && c.RestartCount == 1 {
				return ready(pod)
			}
		}
		return errors.New(status(pod))
	})
}

// A RuntimeClass selects the OCI runtime, and its overhead is part of the pod's cgroup limits.
func TestRuntimeClass(t *testing.T) {
	f := start(t)
	for _, handler := range []string{"runc", "crun"} {
		class := f.namespace + "-" + handler
		f.apply(`
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: ` + class + `}
handler: ` + handler + `
overhead: {podFixed: {memory: 16Mi}}
`)
		t.Cleanup(func() {
			if _, err := f.Kubectl(context.Background(), "delete", "runtimeclass", class); err != nil {
				t.Error(err)
			}
		})
		f.pod(handler, "\truntimeClassName: "+class+"\n"+client)
	}
	for _, handler := range []string{"runc", "crun"} {
		pod := f.awaitPod(handler, ready)
		state, err := f.node(pod).Run(f.ctx, "ls", f.node(pod).Mica.State+"/runtimes/"+handler)
		_, id, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
		if err != nil || !strings.Contains(state, id) {
			t.Errorf("%s has %q, %v, and not %s", handler, state, err, id)
		}
	}
}

// Pods on different nodes reach each other by address and by service.
func TestAcrossNodes(t *testing.T) {
	f := start(t)
	for _, n := range f.Nodes {
		f.pod(n.Name, `
	nodeName: `+n.Name+`
	containers: [{name: main, image: "`+cluster.Agnhost+`", args: [netexec, --http-port=8080]}]
`)
	}
	var addresses []string
	for index, n := range f.Nodes {
		pod := f.awaitPod(n.Name, ready)
		addresses = append(addresses, pod.Status.PodIP)
		if !strings.HasPrefix(pod.Status.PodIP, strings.TrimSuffix(f.Nodes[index].Pods.Addr().String(), "0")) {
			t.Errorf("pod on %s has the address %s, not in %s", n.Name, pod.Status.PodIP, n.Pods)
		}
	}
	for _, from := range f.Nodes {
		for index, to := range f.Nodes {
			// The receiver sees the pod's own address.
			out := f.exec(from.Name, "wget -q -O- "+addresses[index]+":8080/hostname; echo; wget -q -O- "+addresses[index]+":8080/clientip")
			name, source, _ := strings.Cut(out, "\n")
			if name != to.Name || from != to && !strings.HasPrefix(source, f.podAddress(from.Name)+":") {
				t.Errorf("from %s to %s: %q", from.Name, to.Name, out)
			}
		}
	}
}

func (f *fixture) podAddress(name string) string {
	f.t.Helper()
	pod, err := f.get(f.ctx, name)
	if err != nil {
		f.t.Fatal(err)
	}
	return pod.Status.PodIP
}

// A process has the properties that its security context requests.
func TestSecurityContext(t *testing.T) {
	f := start(t)
	f.pod("main", `
	hostname: box
	subdomain: db
	securityContext: {runAsUser: 1000, runAsGroup: 2000, supplementalGroups: [3000], sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "7"}]}
	containers:
	- name: main
		image: `+cluster.Busybox+`
		command: [sleep, infinity]
		securityContext:
			readOnlyRootFilesystem: true
			allowPrivilegeEscalation: false
			seccompProfile: {type: RuntimeDefault}
			capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
`)
	f.awaitPod("main", ready)
	for command, want := range map[string]string{
		"id -u; id -g":       "1000\n2000\n",
		"id -G":              "2000 3000\n",
		"touch /x 2>&1 || :": "touch: /x: Read-only file system\n",
		"hostname":           "box\n",
		"cat /proc/sys/net/ipv4/ip_unprivileged_port_start":         "7\n",
		"grep -E '^(NoNewPrivs|Seccomp|CapBnd):' /proc/self/status": "CapBnd:\t0000000000000400\nNoNewPrivs:\t1\nSeccomp:\t2\n",
	} {
		if got := f.exec("main", command); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
}
