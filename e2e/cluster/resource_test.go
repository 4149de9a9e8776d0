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

func TestOOMKilled(t *testing.T) {
	f := start(t)
	for name, command := range map[string]string{
		"main":  "tail /dev/zero",
		"child": "tail /dev/zero; echo the shell outlives it; exit 3",
	} {
		f.pod(name, `
	restartPolicy: Never
	containers:
	- name: main
		image: `+cluster.Busybox+`
		command: [sh, -c, "`+command+`"]
		resources: {limits: {memory: 20Mi}}
`)
	}
	pod := f.awaitPod("main", ended(corev1.PodFailed))
	if e := pod.Status.ContainerStatuses[0].State.Terminated; e.Reason != "OOMKilled" || e.ExitCode != 137 {
		t.Errorf("ended by %+v", e)
	}
	f.awaitPod("child", ended(corev1.PodFailed))
}

// inCgroup returns the content of a file in the cgroup of the pod's main container, by its name in
// cgroup v1 or v2.
func (f *fixture) inCgroup(pod, v1, v2 string) string {
	f.t.Helper()
	return strings.TrimSpace(f.exec(pod, "cat /sys/fs/cgroup/"+v1+" 2>/dev/null || cat /sys/fs/cgroup/"+v2))
}

// Resources change in place: the container gets its new limits without a restart.
func TestResize(t *testing.T) {
	f := start(t)
	f.pod("main", `
	containers:
	- name: main
		image: `+cluster.Busybox+`
		command: [sleep, infinity]
		resources: {requests: {cpu: 50m, memory: 32Mi}, limits: {cpu: 100m, memory: 64Mi}}
		resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}, {resourceName: memory, restartPolicy: NotRequired}]
`)
	f.awaitPod("main", ready)
	if limit := f.inCgroup("main", "memory/memory.limit_in_bytes", "memory.max"); limit != "67108864" {
		t.Errorf("memory limit is %s", limit)
	}
	f.kubectl("patch", "pod", "main", "--subresource=resize", "--patch",
		`{"spec": {"containers": [{"name": "main", "resources": {"requests": {"cpu": "80m", "memory": "48Mi"}, "limits": {"cpu": "200m", "memory": "96Mi"}}}]}}`)
	pod := f.awaitPod("main", func(pod corev1.Pod) error {
		c := pod.Status.ContainerStatuses[0]
		if c.Resources == nil || c.Resources.Limits.Memory().String() != "96Mi" || c.Resources.Limits.Cpu().String() != "200m" {
			return fmt.Errorf("resources are %+v", c.Resources)
		}
		return nil
	})
	if restarts := pod.Status.ContainerStatuses[0].RestartCount; restarts != 0 {
		t.Errorf("%d restarts", restarts)
	}
	if limit := f.inCgroup("main", "memory/memory.limit_in_bytes", "memory.max"); limit != "100663296" {
		t.Errorf("memory limit is %s", limit)
	}
	if quota := f.inCgroup("main", "cpu/cpu.cfs_quota_us", "cpu.max"); !strings.HasPrefix(quota, "20000") {
		t.Errorf("CPU quota is %s", quota)
	}
}

// A pod that exceeds its ephemeral storage limit is evicted with that reason.
func TestEvictedForEphemeralStorage(t *testing.T) {
	f := start(t)
	f.pod("volume", `
	containers: [{name: main, image: "`+cluster.Busybox+`", command: [sh, -c, "dd if=/dev/zero of=/v/fill bs=1M count=20; exec sleep infinity"], volumeMounts: [{name: v, mountPath: /v}]}]
	volumes: [{name: v, emptyDir: {sizeLimit: 5Mi}}]
`)
	f.pod("layer", `
	containers: [{name: main, image: "`+cluster.Busybox+`", command: [sh, -c, "dd if=/dev/zero of=/fill bs=1M count=20; exec sleep infinity"], resources: {limits: {ephemeral-storage: 5Mi}}}]
`)
	for pod, message := range map[string]string{"volume": "EmptyDir volume", "layer": "ephemeral local storage"} {
		f.awaitPod(pod, evicted(message))
	}
}

// evicted checks that a pod was evicted with the message.
func evicted(message string) func(corev1.Pod) error {
	return func(pod corev1.Pod) error {
		if pod.Status.Phase != corev1.PodFailed || pod.Status.Reason != "Evicted" || !strings.Contains(pod.Status.Message, message) {
			return errors.New(status(pod))
		}
		return nil
	}
}

// A node whose disk becomes full evicts the pod that fills it, and recovers.
func TestDiskPressure(t *testing.T) {
	f := startAlone(t)
	n := f.Nodes[1]
	f.pod("filler", `
	nodeName: `+n.Name+`
	containers: [{name: main, image: "`+cluster.Busybox+`", command: [sh, -c, "dd if=/dev/zero of=/v/fill bs=1M count=900; exec sleep infinity"], volumeMounts: [{name: v, mountPath: /v}]}]
	volumes: [{name: v, emptyDir: {}}]
`)
	f.awaitPod("filler", evicted("low on resource: ephemeral-storage"))
	// The API server's view of the node's condition lags behind: a pod may still be rejected.
	f.await("a pod that the node takes", func(ctx context.Context) error {
		pod, err := f.get(ctx, "after")
		if errors.Is(err, cluster.ErrNotFound) {
			f.pod("after", "\tnodeSelector: {kubernetes.io/hostname: "+n.Name+"}\n"+client)
			return errors.New("it is new")
		}
		if err != nil {
			return err
		}
		if pod.Status.Phase == corev1.PodFailed {
			f.delete("after")
			return errors.New(status(pod))
		}
		return ready(pod)
	})
}
