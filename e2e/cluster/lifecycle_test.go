package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/micarun/mica/e2e/cluster"
)

// initNode is a line in the manifest of pods with init containers. They run on the first node,
// whose kubelet has EventedPLEG off. With that gate and a runtime that reports the time of a pod's
// status, the kubelet of Kubernetes 1.37.2 forgets which init containers have completed, and starts
// the first one again (GetPodStatus leaves ActiveContainerStatuses empty).
func (f *fixture) initNode() string { return "\tnodeName: " + f.Nodes[0].Name + "\n" }

// Init containers run one after the other. A sidecar starts between them, runs beside the main
// container, and ends after it.
func TestInitAndSidecar(t *testing.T) {
	f := start(t)
	f.pod("main", f.initNode()+`
	restartPolicy: Never
	initContainers:
	- name: one
		image: `+cluster.Busybox+`
		command: [sh, -c, "echo one >>/log/order"]
		volumeMounts: [{name: log, mountPath: /log}]
	- name: sidecar
		image: `+cluster.Busybox+`
		restartPolicy: Always
		command: [sh, -c, "echo sidecar >>/log/order; trap 'echo end of sidecar >>/log/order; exit 0' TERM; touch /up; while :; do sleep 1 & wait $!; done"]
		startupProbe: {exec: {command: [test, -e, /up]}, periodSeconds: 1}
		volumeMounts: [{name: log, mountPath: /log}]
	- name: two
		image: `+cluster.Busybox+`
		command: [sh, -c, "echo two >>/log/order"]
		volumeMounts: [{name: log, mountPath: /log}]
	containers:
	- name: main
		image: `+cluster.Busybox+`
		command: [sh, -c, "echo main >>/log/order; cat /log/order"]
		volumeMounts: [{name: log, mountPath: /log}]
	volumes: [{name: log, emptyDir: {}}]
`)
	pod := f.awaitPod("main", ended(corev1.PodSucceeded))
	if log := f.kubectl("logs", "main"); log != "one\nsidecar\ntwo\nmain\n" {
		t.Errorf("order is %q", log)
	}
	for _, c := range pod.Status.InitContainerStatuses {
		if c.State.Terminated == nil || c.State.Terminated.ExitCode != 0 || c.RestartCount != 0 {
			t.Errorf("init container %s: %+v, %d restarts", c.Name, c.State, c.RestartCount)
		}
	}
}

func TestFailedInitContainer(t *testing.T) {
	f := start(t)
	f.pod("main", f.initNode()+`
	restartPolicy: Never
	initContainers: [{name: one, image: "`+cluster.Busybox+`", command: [sh, -c, exit 7]}]
	containers: [{name: main, image: "`+cluster.Busybox+`", command: [sh, -c, echo never]}]
`)
	pod := f.awaitPod("main", ended(corev1.PodFailed))
	if state := pod.Status.InitContainerStatuses[0].State.Terminated; state == nil || state.ExitCode != 7 || state.Reason != "Error" {
		t.Errorf("init container: %+v", state)
	}
	if pod.Status.ContainerStatuses[0].State.Waiting == nil {
		t.Errorf("main container: %+v", pod.Status.ContainerStatuses[0].State)
	}
}

// Every kind of probe, as liveness, readiness and startup probe at once.
func TestProbes(t *testing.T) {
	f := start(t)
	probes := map[string][2]string{
		"exec": {"[netexec, --http-port=8081, --udp-port=9091]", "exec: {command: [sh, -c, wget -q -O- localhost:8081/healthz]}"},
		"http": {"[netexec, --http-port=8082, --udp-port=9092]", "httpGet: {path: /healthz, port: 8082}"},
		"tcp":  {"[netexec, --http-port=8083, --udp-port=9093]", "tcpSocket: {port: 8083}"},
		"grpc": {"[grpc-health-checking, --port=5000]", "grpc: {port: 5000}"},
	}
	spec := "\tcontainers:\n"
	for kind, p := range probes {
		spec += fmt.Sprintf(`
	- name: %[1]s
		image: %[2]s
		args: %[3]s
		startupProbe: {%[4]s, periodSeconds: 1, failureThreshold: 60}
		readinessProbe: {%[4]s, periodSeconds: 1, timeoutSeconds: 10}
		livenessProbe: {%[4]s, periodSeconds: 1, timeoutSeconds: 10}
`, kind, cluster.Agnhost, p[0], p[1])
	}
	f.pod("main", spec)
	f.awaitPod("main", ready)
	// Wait for several rounds of each probe.
	select {
	case <-time.After(5 * time.Second):
	case <-f.ctx.Done():
	}
	pod := f.awaitPod("main", ready)
	for _, c := range pod.Status.ContainerStatuses {
		if c.RestartCount != 0 || c.Started == nil || !*c.Started {
			t.Errorf("%s: %d restarts, started %v", c.Name, c.RestartCount, c.Started)
		}
	}
}

// A container whose liveness probe fails is restarted, with increasing delays.
func TestFailingLivenessProbe(t *testing.T) {
	f := start(t)
	f.pod("main", `
	containers:
	- name: main
		image: `+cluster.Busybox+`
		command: [sh, -c, "touch /healthy; sleep 2; rm /healthy; sleep infinity"]
		livenessProbe: {exec: {command: [cat, /healthy]}, periodSeconds: 1, failureThreshold: 1}
`)
	f.awaitPod("main", func(pod corev1.Pod) error {
		c := pod.Status.ContainerStatuses
		if len(c) == 0 || c[0].RestartCount < 2 || c[0].State.Waiting == nil || c[0].State.Waiting.Reason != "CrashLoopBackOff" {
			return errors.New(status(pod))
		}
		if e := c[0].LastTerminationState.Terminated; e == nil || e.ExitCode != 137 {
			return fmt.Errorf("ended by %+v, want by SIGKILL", e)
		}
		return nil
	})
	f.awaitEvent("main", "Unhealthy", "can't open '/healthy'")
	f.awaitEvent("main", "Killing", "failed liveness probe")
	f.awaitEvent("main", "BackOff", "Back-off restarting failed container")
}

// A pod that is not ready gets no traffic until its probe succeeds again.
func TestReadinessFollowsTheProbe(t *testing.T) {
	f := start(t)
	f.pod("main", `
	containers:
	- name: main
		image: `+cluster.Busybox+`
		command: [sh, -c, "touch /ready; exec sleep infinity"]
		readinessProbe: {exec: {command: [test, -e, /ready]}, periodSeconds: 1}
`)
	f.awaitPod("main", ready)
	f.exec("main", "rm /ready")
	f.awaitPod("main", func(pod corev1.Pod) error {
		if ready(pod) == nil {
			return errors.New("still ready")
		}
		return nil
	})
	f.exec("main", "touch /ready")
	f.awaitPod("main", ready)
}

// Hooks run in their container, in order, and a pod is gone within its grace period.
func TestHooks(t *testing.T) {
	f := start(t)
	f.apply(`
apiVersion: v1
kind: Pod
metadata: {name: main}
spec:
	terminationGracePeriodSeconds: 60
	nodeName: ` + f.Nodes[0].Name + `
	containers:
	- name: main
		image: ` + cluster.Busybox + `
		command: [sh, -c, "trap 'echo terminated >>/out/log; exit 0' TERM; while :; do sleep 1 & wait $!; done"]
		lifecycle:
			postStart: {exec: {command: [sh, -c, echo started >>/out/log]}}
			preStop: {exec: {command: [sh, -c, "sleep 1; echo about to stop >>/out/log"]}}
		volumeMounts: [{name: out, mountPath: /out}]
	volumes: [{name: out, hostPath: {path: "` + f.Nodes[0].Disk() + `/hooks", type: DirectoryOrCreate}}]
`)
	f.awaitPod("main", ready)
	took := f.delete("main")
	if took > 30*time.Second {
		t.Errorf("deletion took %s", took)
	}
	out, err := f.Nodes[0].Run(f.ctx, "cat", f.Nodes[0].Disk()+"/hooks/log")
	if want := "started\nabout to stop\nterminated\n"; err != nil || out != want {
		t.Errorf("log is %q, %v, want %q", out, err, want)
	}
}

// delete deletes the pod and returns the time until it is gone.
func (f *fixture) delete(pod string, flags ...string) time.Duration {
	f.t.Helper()
	begin := time.Now()
	f.kubectl(append([]string{"delete", "pod", pod, "--wait=false"}, flags...)...)
	f.await(pod+" to be gone", func(ctx context.Context) error {
		_, err := f.get(ctx, pod)
		if errors.Is(err, cluster.ErrNotFound) {
			return nil
		}
		return errors.Join(errors.New("the pod still exists"), err)
	})
	return time.Since(begin)
}

func TestFailedPostStart(t *testing.T) {
	f := start(t)
	f.pod("main", `
	restartPolicy: Never
	containers:
	- name: main
		image: `+cluster.Busybox+`
		command: [sleep, infinity]
		lifecycle: {postStart: {exec: {command: [sh, -c, exit 5]}}}
`)
	f.awaitPod("main", ended(corev1.PodFailed))
	f.awaitEvent("main", "FailedPostStartHook", "PostStartHook failed")
}

// A container that ignores its stop signal is killed at the end of the grace period, not earlier
// and not much later.
func TestGracePeriod(t *testing.T) {
	f := start(t)
	for _, name := range []string{"patient", "forced"} {
		f.apply(`
apiVersion: v1
kind: Pod
metadata: {name: ` + name + `}
spec:
	terminationGracePeriodSeconds: 5
	containers: [{name: main, image: "` + cluster.Busybox + `", command: [sh, -c, "trap '' TERM; while :; do sleep 1; done"]}]
`)
	}
	f.awaitPod("patient", ready)
	f.awaitPod("forced", ready)
	if took := f.delete("patient"); took < 5*time.Second || took > 20*time.Second {
		t.Errorf("deletion took %s, with 5 s of grace", took)
	}
	if took := f.delete("forced", "--grace-period=0", "--force"); took > 5*time.Second {
		t.Errorf("forced deletion took %s", took)
	}
}

// A container's termination message reaches the API, from the file or from the log.
func TestTerminationMessage(t *testing.T) {
	f := start(t)
	f.pod("main", `
	restartPolicy: Never
	containers:
	- name: file
		image: `+cluster.Busybox+`
		command: [sh, -c, "printf 'from the file' >/ended/why; exit 1"]
		terminationMessagePath: /ended/why
	- name: log
		image: `+cluster.Busybox+`
		command: [sh, -c, "echo from the log; exit 1"]
		terminationMessagePolicy: FallbackToLogsOnError
	- name: user
		image: `+cluster.Busybox+`
		command: [sh, -c, "printf 'from a user' >/dev/termination-log"]
		securityContext: {runAsUser: 1000}
`)
	pod := f.awaitPod("main", ended(corev1.PodFailed))
	for _, c := range pod.Status.ContainerStatuses {
		want := map[string]string{"file": "from the file", "log": "from the log\n", "user": "from a user"}[c.Name]
		if c.State.Terminated == nil || c.State.Terminated.Message != want {
			t.Errorf("%s: %+v, want %q", c.Name, c.State.Terminated, want)
		}
	}
}

// A missing command results in an error that says so.
func TestCommandNotFound(t *testing.T) {
	f := start(t)
	f.pod("main", `
	containers: [{name: main, image: "`+cluster.Busybox+`", command: [/no/such/thing]}]
`)
	f.awaitPod("main", waiting("CreateContainerError"))
	f.awaitEvent("main", "Failed", "/no/such/thing")
}
