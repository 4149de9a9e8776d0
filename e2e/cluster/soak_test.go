package cluster_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/cluster"
)

// soakTime is the minimum duration of TestSoak, which completes at least one round.
var soakTime = flag.Duration("soak", 0, "duration of the mixed workload of TestSoak")

// During a mixed workload, neither kubelet nor daemon logs an unexpected error or warning. Expected are
// those that the workload provokes, and those caused by this machine or by the way the kubelet is
// started.
func TestSoak(t *testing.T) {
	f := startAlone(t)
	logs := f.logMarks("kubelet", "micad")
	f.apply(web)
	f.apply(fmt.Sprintf(steady, cluster.Busybox))
	f.kubectl("create", "configmap", "settings", "--from-literal=round=none")
	f.pullUnused()
	begin := time.Now()
	rounds := 0
	for ; rounds == 0 || time.Since(begin) < *soakTime; rounds++ {
		f.soakRound(rounds)
	}
	if *soakTime > imageAge+imagePeriod {
		f.checkUnused()
	}
	f.clear(f.ctx)
	t.Logf("%d rounds in %.0f s", rounds, time.Since(begin).Seconds())
	for _, mark := range logs {
		f.sift(mark)
	}
}

// A kubelet looks for old images once in imagePeriod. It does not trust any image's age before it
// has run for imageAge itself.
const (
	imagePeriod = 5 * time.Minute
	imageAge    = 3 * time.Minute
)

// pullUnused pulls an image that no pod uses, and a pinned one.
func (f *fixture) pullUnused() {
	f.t.Helper()
	for _, n := range f.Nodes {
		for _, name := range []string{cluster.Nginx, cluster.Pinned} {
			if _, err := n.Mica.Images.PullImage(f.ctx, &runtimeapi.ImageSpec{Image: name}, nil, nil); err != nil {
				f.t.Fatal(err)
			}
		}
	}
}

// checkUnused checks that the kubelets have removed the unused image for its age, but neither the
// pinned image nor those in use.
func (f *fixture) checkUnused() {
	f.t.Helper()
	for _, n := range f.Nodes {
		for name, want := range map[string]bool{cluster.Nginx: false, cluster.Pinned: true, cluster.Busybox: true} {
			status, err := n.Mica.Images.ImageStatus(f.ctx, &runtimeapi.ImageSpec{Image: name}, false)
			if err != nil {
				f.t.Fatal(err)
			}
			if status.GetImage() == nil == want {
				f.t.Errorf("%s: image %s: exists %v", n.Name, name, status.GetImage())
			}
		}
		f.awaitMetric(n, "metrics", "kubelet_image_garbage_collected_total", `reason="age"`)
	}
}

// steady is the workload that always runs, on both nodes: pods with every kind of probe, a crashing
// pod, a logging pod, and a CronJob.
const steady = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: every}
spec:
	selector: {matchLabels: {app: every}}
	template:
		metadata: {labels: {app: every}}
		spec:
			terminationGracePeriodSeconds: 1
			containers:
			- name: main
				image: %[1]s
				command: [sh, -c, "while :; do echo line after line; sleep 0.1; done"]
				readinessProbe: {exec: {command: ["true"]}, periodSeconds: 1, timeoutSeconds: 10}
				volumeMounts: [{name: settings, mountPath: /settings}]
			volumes: [{name: settings, configMap: {name: settings}}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: crashing}
spec:
	selector: {matchLabels: {app: crashing}}
	template:
		metadata: {labels: {app: crashing}}
		spec: {containers: [{name: main, image: %[1]s, command: [sh, -c, "exit 3"]}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: often}
spec:
	schedule: "* * * * *"
	successfulJobsHistoryLimit: 1
	jobTemplate:
		spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, image: %[1]s, command: [date]}]}}}
`

// passing is created and deleted in every round.
const passing = `
apiVersion: batch/v1
kind: Job
metadata: {name: round}
spec:
	completions: 4
	parallelism: 2
	template:
		spec: {restartPolicy: Never, containers: [{name: main, image: %[1]s, command: [sh, -c, "echo done"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: round}
spec:
%[2]s	terminationGracePeriodSeconds: 1
	initContainers:
	- {name: first, image: %[1]s, command: ["true"]}
	- {name: sidecar, image: %[1]s, command: [sleep, infinity], restartPolicy: Always}
	containers:
	- name: main
		image: %[1]s
		command: [sh, -c, "trap exit TERM; while :; do sleep 1 & wait; done"]
		lifecycle: {postStart: {exec: {command: [touch, /started]}}, preStop: {exec: {command: ["true"]}}}
		livenessProbe: {exec: {command: [test, -e, /started]}, periodSeconds: 1, timeoutSeconds: 10}
		resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: 500m, memory: 64Mi}}
	- {name: other, image: %[1]s, command: [sleep, infinity], stdin: true}
---
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
	restartPolicy: Never
	containers: [{name: main, image: %[1]s, command: [tail, /dev/zero], resources: {limits: {memory: 20Mi}}}]
`

// soakRound performs typical user operations on a cluster once.
func (f *fixture) soakRound(number int) {
	f.t.Helper()
	f.apply(fmt.Sprintf(passing, cluster.Busybox, f.initNode()))
	f.awaitPods("app=web", 3)
	f.awaitPods("app=every", len(f.Nodes))
	f.awaitPod("round", ready)
	f.exec("round", "echo hello >/greeting; cat /greeting")
	f.kubectl("patch", "pod", "round", "--subresource=resize", "--patch",
		`{"spec": {"containers": [{"name": "main", "resources": {"limits": {"cpu": "600m"}}}]}}`)
	f.kubectl("logs", "daemonset/every", "--tail=3")
	f.kubectl("cp", "round:/greeting", f.t.TempDir()+"/greeting")
	f.kubectl("patch", "configmap", "settings", "--patch", fmt.Sprintf(`{"data": {"round": "%d"}}`, number))
	f.awaitPod("hungry", ended(corev1.PodFailed))
	f.await("the round's job", func(ctx context.Context) error {
		var job batchv1.Job
		if err := f.Get(ctx, "/apis/batch/v1/namespaces/"+f.namespace+"/jobs/round", &job); err != nil {
			return err
		}
		if job.Status.Succeeded != 4 {
			return fmt.Errorf("%d pods succeeded", job.Status.Succeeded)
		}
		return nil
	})
	for _, n := range f.Nodes {
		if _, err := f.kubelet(f.ctx, n, "stats/summary"); err != nil {
			f.t.Error(err)
		}
	}
	f.kubectl("rollout", "restart", "deployment/web")
	f.kubectl("rollout", "status", "deployment/web", "--timeout=3m")
	f.kubectl("delete", "job/round", "pod/round", "pod/hungry", "--timeout=3m")
}

// logMark is a position in a log of a node.
type logMark struct {
	program, path string
	node          *cluster.Node
	size          int64
}

// logMarks returns the current ends of all nodes' logs.
func (f *fixture) logMarks(programs ...string) []logMark {
	f.t.Helper()
	var marks []logMark
	for _, n := range f.Nodes {
		for _, program := range programs {
			info, err := os.Stat(n.Log(program))
			if err != nil {
				f.t.Fatal(err)
			}
			marks = append(marks, logMark{program, n.Log(program), n, info.Size()})
		}
	}
	return marks
}

// sift reports the lines of a log since the mark that are errors, warnings or of unknown form,
// except for those that excuse lists.
func (f *fixture) sift(mark logMark) {
	f.t.Helper()
	text, err := mark.read()
	if err != nil {
		f.t.Fatal(err)
	}
	removed, err := removedContainers(mark.node)
	if err != nil {
		f.t.Fatal(err)
	}
	quiet := regexp.MustCompile(`^I\d{4} `)
	known := excuses()
	excused := map[string]int{}
	var strange []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || quiet.MatchString(line) {
			continue
		}
		at := slices.IndexFunc(known, func(e excuse) bool { return e.program == mark.program && e.fits(line, removed) })
		if at < 0 {
			strange = append(strange, line)
			continue
		}
		excused[known[at].reason]++
	}
	for _, reason := range slices.Sorted(maps.Keys(excused)) {
		f.t.Logf("%s of %s: %d lines: %s", mark.program, mark.node.Name, excused[reason], reason)
	}
	for _, line := range strange[:min(len(strange), 50)] {
		f.t.Errorf("%s of %s: %s", mark.program, mark.node.Name, line)
	}
	if len(strange) > 50 {
		f.t.Errorf("%s of %s: %d more", mark.program, mark.node.Name, len(strange)-50)
	}
}

// read returns the log since the mark.
func (m logMark) read() (string, error) {
	file, err := os.Open(m.path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	text, err := io.ReadAll(io.NewSectionReader(file, m.size, 1<<30))
	if err == nil && len(text) == 0 {
		err = errors.New(m.path + " has nothing new")
	}
	return string(text), err
}

// removedContainers returns the containers that the kubelet has removed, from the daemon's log.
func removedContainers(n *cluster.Node) (map[string]bool, error) {
	text, err := os.ReadFile(n.Log("micad"))
	if err != nil {
		return nil, err
	}
	removed := map[string]bool{}
	for _, found := range regexp.MustCompile(`"Call done" method="RemoveContainer" .*container="([0-9a-f]{64})"`).FindAllSubmatch(text, -1) {
		removed[string(found[1])] = true
	}
	return removed, nil
}

// excuse lists log lines of a program that Mica does not cause, with the reasons.
type excuse struct {
	program string
	pattern *regexp.Regexp // a group is the ID of a container, which must have been removed
	reason  string
}

func (e excuse) fits(line string, removed map[string]bool) bool {
	found := e.pattern.FindStringSubmatch(line)
	return found != nil && (len(found) == 1 || removed[found[1]])
}

func excuses() []excuse {
	kubelet := func(reason, pattern string) excuse { return excuse{"kubelet", regexp.MustCompile(pattern), reason} }
	return []excuse{
		// Provoked by the workload.
		kubelet("the container that crashes",
			`"Error syncing pod, skipping" err="failed to \\"StartContainer\\" for \\"main\\" with CrashLoopBackOff: .* pod=crashing-`),
		// Caused by the kubelet itself.
		kubelet("it requests a container that it has removed",
			`"(?:ContainerStatus from runtime service failed|Failed to remove container)" err=".*: code = NotFound .*" containerID="([0-9a-f]{64})"`),
		kubelet("it cancels the probe of a pod that is being terminated",
			`"ExecSync cmd from runtime service failed" err="rpc error: code = Canceled desc = context canceled"`),
		kubelet("it reads the cgroup of a pod that it has removed",
			`"failed to read memory cgroup (?:config|limits) for the pod" err=".*: no such file or directory"`),
		kubelet("it reads from a client connection that it has closed",
			`conn\.go:\d+\] "Error on socket receive" err=".*: use of closed network connection"`),
		// Answers of the API server while a namespace is being deleted.
		kubelet("the pod is gone from the API",
			`is forbidden: User .*"system:node:.*no relationship found between node`),
		kubelet("the configuration map is gone from the API",
			`(?:Couldn't get configMap|MountVolume\.SetUp failed for volume) .*: configmap "(?:settings|kube-root-ca\.crt)" not found`),
		// Caused by this machine.
		kubelet("it may not inspect the machine's first process",
			`"Failed to ensure process in container with oom score" err="failed to find pid namespace of init process"`),
		kubelet("a cgroup was removed while cAdvisor read it",
			`watcher\.go:\d+\] Error while processing event \("/sys/fs/cgroup/.*: no such file or directory`),
	}
}
