package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/micarun/mica/e2e/cluster"
)

// The Node object has the runtime's version and features as the runtime reports them.
func TestNodeStatus(t *testing.T) {
	f := start(t)
	for _, n := range f.Nodes {
		object, err := n.Object(f.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if version := object.Status.NodeInfo.ContainerRuntimeVersion; !strings.HasPrefix(version, "mica://") {
			t.Errorf("runtime version is %q", version)
		}
		var handlers []string
		for _, handler := range object.Status.RuntimeHandlers {
			handlers = append(handlers, handler.Name)
			if features := handler.Features; features == nil || features.UserNamespaces == nil || !*features.UserNamespaces ||
				features.RecursiveReadOnlyMounts == nil || !*features.RecursiveReadOnlyMounts {
				t.Errorf("handler %q: %+v", handler.Name, features)
			}
		}
		for _, name := range []string{"", "runc", "crun"} {
			if !slices.Contains(handlers, name) {
				t.Errorf("handlers are %q, and not %q", handlers, name)
			}
		}
		if features := object.Status.Features; features == nil || features.SupplementalGroupsPolicy == nil || !*features.SupplementalGroupsPolicy {
			t.Errorf("features are %+v", object.Status.Features)
		}
		// `crictl info` shows the settings that the kubelet sent.
		status, err := n.Mica.Runtime.Status(f.ctx, true)
		if err != nil {
			t.Fatal(err)
		}
		var reported []string
		for _, handler := range status.RuntimeHandlers {
			reported = append(reported, handler.Name)
		}
		slices.Sort(reported)
		slices.Sort(handlers)
		if !slices.Equal(reported, handlers) || !status.Features.GetSupplementalGroupsPolicy() {
			t.Errorf("the runtime reports handlers %q and features %v, the node of %q", reported, status.Features, handlers)
		}
		if version := object.Status.NodeInfo.ContainerRuntimeVersion; "mica://"+strings.Trim(status.Info["version"], `"v`) != version {
			t.Errorf("the runtime's version is %s, the node's %s", status.Info["version"], version)
		}
		// kubectl shows the same values.
		text := f.kubectl("get", "node", n.Name, "--output=yaml")
		for _, want := range []string{"containerRuntimeVersion: mica://", "runtimeHandlers:", "- features:", "recursiveReadOnlyMounts: true", "userNamespaces: true", "name: crun", "name: runc", "supplementalGroupsPolicy: true"} {
			if !strings.Contains(text, want) {
				t.Errorf("kubectl get node %s does not contain %q:\n%s", n.Name, want, text)
			}
		}
	}
}

// The kubelet's summary and metrics have values for a pod, wherever the kubelet takes them from.
func TestStatistics(t *testing.T) {
	f := start(t)
	for _, n := range f.Nodes {
		f.pod(n.Name, `
	nodeName: `+n.Name+`
	containers: [{name: main, image: "`+cluster.Busybox+`", command: [sh, -c, "dd if=/dev/zero of=/fill bs=1M count=5; while :; do :; done"], resources: {limits: {cpu: 50m}}}]
`)
	}
	for _, n := range f.Nodes {
		f.awaitPod(n.Name, ready)
		f.await("figures of "+n.Name, func(ctx context.Context) error {
			text, err := f.kubelet(ctx, n, "stats/summary")
			if err != nil {
				return err
			}
			return f.checkSummary(text, n)
		})
		f.awaitMetric(n, "metrics/resource", "container_cpu_usage_seconds_total", `container="main"`, `pod="`+n.Name+`"`)
		if n.Other() {
			for _, name := range []string{"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_network_receive_bytes_total"} {
				f.awaitMetric(n, "metrics/cadvisor", name, `namespace="`+f.namespace+`"`, `pod="`+n.Name+`"`)
			}
		}
	}
}

// A kubelet with EventedPLEG uses the runtime's events and does not fall back to polling.
func TestEventedPLEG(t *testing.T) {
	f := start(t)
	for _, n := range f.Nodes {
		if !n.Other() {
			continue
		}
		f.awaitMetric(n, "metrics", "kubelet_evented_pleg_connection_success_count")
		text, err := f.kubelet(f.ctx, n, "metrics")
		if err != nil || !strings.Contains(text, "\nkubelet_evented_pleg_connection_error_count 0\n") {
			t.Errorf("connections of %s failed, %v", n.Name, err)
		}
	}
}

// kubelet reads a path of the node's kubelet.
func (f *fixture) kubelet(ctx context.Context, n *cluster.Node, path string) (text string, err error) {
	err = f.Get(ctx, "/api/v1/nodes/"+n.Name+"/proxy/"+path, &text)
	return text, err
}

// awaitMetric waits until the kubelet's metric with the labels is above zero.
func (f *fixture) awaitMetric(n *cluster.Node, path, name string, labels ...string) {
	f.t.Helper()
	f.await(fmt.Sprintf("%s %q of %s in %s", name, labels, n.Name, path), func(ctx context.Context) error {
		text, err := f.kubelet(ctx, n, path)
		if err != nil {
			return err
		}
		for line := range strings.Lines(text) {
			fields := strings.Fields(line)
			found := len(fields) > 1 && (strings.HasPrefix(line, name+"{") || fields[0] == name) && fields[1] != "0"
			for _, label := range labels {
				found = found && strings.Contains(line, label)
			}
			if found {
				return nil
			}
		}
		return errors.New("the metric does not exist")
	})
}

// checkSummary checks that the kubelet's summary has values for the pod.
func (f *fixture) checkSummary(text string, n *cluster.Node) error {
	type figures struct{ UsedBytes, WorkingSetBytes, UsageNanoCores *uint64 }
	var summary struct {
		Pods []struct {
			PodRef     struct{ Name, Namespace string }
			Containers []struct {
				CPU, Memory, Rootfs figures
			}
			CPU, Memory figures
			Network     *struct{ TxBytes *uint64 }
		}
	}
	if err := json.Unmarshal([]byte(text), &summary); err != nil {
		return err
	}
	for _, pod := range summary.Pods {
		if pod.PodRef.Namespace != f.namespace || len(pod.Containers) != 1 {
			continue
		}
		c := pod.Containers[0]
		for what, value := range map[string]*uint64{
			"container CPU": c.CPU.UsageNanoCores, "container memory": c.Memory.WorkingSetBytes,
			"pod CPU": pod.CPU.UsageNanoCores, "pod memory": pod.Memory.WorkingSetBytes,
		} {
			if value == nil || *value == 0 {
				return fmt.Errorf("no %s in %+v", what, pod)
			}
		}
		if used := c.Rootfs.UsedBytes; used == nil || *used < 5<<20 {
			return fmt.Errorf("root file system has %v bytes", used)
		}
		if n.Other() && (pod.Network == nil || pod.Network.TxBytes == nil) {
			return errors.New("no network")
		}
		return nil
	}
	return errors.New("the summary does not have the pod")
}

// manyPods is the number of pods during the restarts of their node's programs.
const manyPods = 100

// Restarts of kubelet and daemon restart no container, and every pod remains ready.
func TestRestarts(t *testing.T) {
	f := startAlone(t)
	n := f.Nodes[0]
	f.apply(fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
	replicas: %d
	selector: {matchLabels: {app: many}}
	template:
		metadata: {labels: {app: many}}
		spec:
			nodeSelector: {kubernetes.io/hostname: %s}
			terminationGracePeriodSeconds: 1
			containers:
			- name: main
				image: %s
				command: [sleep, infinity]
				readinessProbe: {exec: {command: ["true"]}, periodSeconds: 10, timeoutSeconds: 10}
`, manyPods, n.Name, cluster.Busybox))
	begin := time.Now()
	before := f.awaitPods("app=many", manyPods)
	t.Logf("%d pods were ready after %.1f s", manyPods, time.Since(begin).Seconds())
	// A kubelet treats containers as new that started up to ten seconds before it.
	f.await("containers to be old enough", func(context.Context) error {
		for _, pod := range before {
			if age := time.Since(pod.Status.ContainerStatuses[0].State.Running.StartedAt.Time); age < 12*time.Second {
				return fmt.Errorf("the container of %s has run for %s", pod.Name, age)
			}
		}
		return nil
	})
	steps := map[string]func() error{
		"kubelet": func() error { return errors.Join(n.StopKubelet(f.ctx), n.StartKubelet()) },
		"daemon": func() error {
			_, err := n.Mica.StartDaemon(f.ctx)
			return err
		},
	}
	for _, name := range []string{"kubelet", "daemon"} {
		if name == "daemon" {
			if err := n.Mica.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		if err := steps[name](); err != nil {
			t.Fatalf("restart %s: %v", name, err)
		}
		f.awaitSync(n)
		f.compare(name, before, f.awaitPods("app=many", manyPods))
	}
}

// awaitSync waits until the kubelet has run a new pod, and so has read the others.
func (f *fixture) awaitSync(n *cluster.Node) {
	f.t.Helper()
	if err := n.AwaitReady(f.ctx); err != nil {
		f.t.Fatal(err)
	}
	f.pod("new", "\tnodeName: "+n.Name+"\n"+client)
	f.awaitPod("new", ready)
	f.delete("new")
}

// compare checks that pods have not changed and were ready without an interruption.
func (f *fixture) compare(restarted string, before, after []corev1.Pod) {
	f.t.Helper()
	known := map[string]corev1.Pod{}
	for _, pod := range before {
		known[pod.Name] = pod
	}
	since := func(pod corev1.Pod) time.Time {
		for _, condition := range pod.Status.Conditions {
			if condition.Type == corev1.PodReady {
				return condition.LastTransitionTime.Time
			}
		}
		return time.Time{}
	}
	for _, pod := range after {
		old, ok := known[pod.Name]
		if !ok || old.Status.ContainerStatuses[0].ContainerID != pod.Status.ContainerStatuses[0].ContainerID ||
			pod.Status.ContainerStatuses[0].RestartCount != 0 {
			f.t.Errorf("restart of %s: pod %s was restarted: %s", restarted, pod.Name, status(pod))
		}
		if ok && !since(old).Equal(since(pod)) {
			f.t.Errorf("restart of %s: pod %s was not ready for a while: since %s, was since %s", restarted, pod.Name, since(pod), since(old))
		}
	}
}
