package cluster_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/micarun/mica/e2e/cluster"
)

// web is a Deployment of three servers that return their host name, and its Service.
const web = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
	replicas: 3
	selector: {matchLabels: {app: web}}
	template:
		metadata: {labels: {app: web}}
		spec:
			terminationGracePeriodSeconds: 1
			containers:
			- name: web
				image: ` + cluster.Agnhost + `
				args: [netexec, --http-port=8080]
				ports: [{containerPort: 8080}]
				readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
	selector: {app: web}
	ports: [{port: 80, targetPort: 8080}]
`

// client is a pod from which other pods are called.
const client = `
	containers:
	- name: main
		image: ` + cluster.Busybox + `
		command: [sleep, infinity]
`

func TestDeployment(t *testing.T) {
	f := start(t)
	f.apply(web)
	f.kubectl("rollout", "status", "deployment/web", "--timeout=3m")
	first := f.awaitPods("app=web", 3)

	f.kubectl("set", "env", "deployment/web", "VERSION=2")
	f.kubectl("rollout", "status", "deployment/web", "--timeout=3m")
	for _, pod := range f.awaitPods("app=web", 3) {
		for _, old := range first {
			if pod.Name == old.Name {
				t.Errorf("%s still exists after the rolling update", pod.Name)
			}
		}
		if version := f.exec(pod.Name, "echo $VERSION"); version != "2\n" {
			t.Errorf("%s has version %q", pod.Name, version)
		}
	}
	f.kubectl("set", "image", "deployment/web", "web="+cluster.Nginx)
	f.kubectl("patch", "deployment/web", "--type=json", `--patch=[
		{"op": "remove", "path": "/spec/template/spec/containers/0/args"},
		{"op": "replace", "path": "/spec/template/spec/containers/0/readinessProbe/httpGet", "value": {"path": "/", "port": 80}}]`)
	f.kubectl("rollout", "status", "deployment/web", "--timeout=3m")
	f.awaitPods("app=web", 3)

	f.kubectl("rollout", "undo", "deployment/web", "--to-revision=1")
	f.kubectl("rollout", "status", "deployment/web", "--timeout=3m")
	f.kubectl("scale", "deployment/web", "--replicas=0")
	f.awaitPods("app=web", 0)
}

// A Service reaches each of its pods, also from a pod that knows the Service only from its
// environment.
func TestService(t *testing.T) {
	f := start(t)
	f.apply(web)
	backends := f.awaitPods("app=web", 3)
	f.pod("client", client)
	f.awaitPod("client", ready)
	var service corev1.Service
	if err := f.Get(f.ctx, f.path("services/web"), &service); err != nil {
		t.Fatal(err)
	}
	if host := f.exec("client", "echo $WEB_SERVICE_HOST:$WEB_SERVICE_PORT"); host != service.Spec.ClusterIP+":80\n" {
		t.Errorf("the environment has %q, want %s", host, service.Spec.ClusterIP)
	}
	seen := map[string]bool{}
	f.await("an answer of every pod", func(ctx context.Context) error {
		name, err := f.try(ctx, "exec", "client", "--", "sh", "-c", "wget -q -O- $WEB_SERVICE_HOST:$WEB_SERVICE_PORT/hostname")
		if err != nil {
			return err
		}
		seen[name] = true
		if len(seen) < len(backends) {
			return fmt.Errorf("%v answered", seen)
		}
		return nil
	})
	// A request may be sent to the pod that makes it.
	for range 5 {
		f.exec(backends[0].Name, "wget -q -O- $WEB_SERVICE_HOST/hostname")
	}
}

func TestNodePort(t *testing.T) {
	f := start(t)
	f.apply(strings.Replace(web, "\tselector: {app: web}\n\tports", "\ttype: NodePort\n\tselector: {app: web}\n\tports", 1))
	f.awaitPods("app=web", 3)
	var service corev1.Service
	if err := f.Get(f.ctx, f.path("services/web"), &service); err != nil {
		t.Fatal(err)
	}
	for _, n := range f.Nodes {
		f.await("node port of "+n.Name, func(ctx context.Context) error {
			_, err := f.fetch(ctx, f.Nodes[1], fmt.Sprintf("http://%s:%d/hostname", n.IP, service.Spec.Ports[0].NodePort))
			return err
		})
	}
}

func TestJob(t *testing.T) {
	f := start(t)
	f.apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: work}
spec:
	completions: 4
	parallelism: 2
	completionMode: Indexed
	template:
		spec:
			restartPolicy: OnFailure
			containers:
			- name: work
				image: ` + cluster.Busybox + `
				# The first try of each pod fails.
				command: [sh, -c, "test -e /scratch/tried && echo item $JOB_COMPLETION_INDEX || { touch /scratch/tried; exit 3; }"]
				volumeMounts: [{name: scratch, mountPath: /scratch}]
			volumes: [{name: scratch, emptyDir: {}}]
`)
	f.kubectl("wait", "job/work", "--for=condition=complete", "--timeout=3m")
	pods, err := f.pods(f.ctx, "job-name=work")
	if err != nil || len(pods) != 4 {
		t.Fatalf("%d pods, %v", len(pods), err)
	}
	for _, pod := range pods {
		state := pod.Status.ContainerStatuses[0]
		if state.RestartCount != 1 || state.LastTerminationState.Terminated == nil || state.LastTerminationState.Terminated.ExitCode != 3 {
			t.Errorf("%s: %d restarts, ended before: %v", pod.Name, state.RestartCount, state.LastTerminationState.Terminated)
		}
		if state.State.Terminated == nil || state.State.Terminated.Reason != "Completed" {
			t.Errorf("%s: %s", pod.Name, status(pod))
		}
		index := pod.Annotations["batch.kubernetes.io/job-completion-index"]
		if log := f.kubectl("logs", pod.Name); log != "item "+index+"\n" {
			t.Errorf("%s: log is %q", pod.Name, log)
		}
	}
}

func TestCronJob(t *testing.T) {
	f := start(t)
	f.apply(`
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
	schedule: "* * * * *"
	jobTemplate:
		spec:
			template:
				spec:
					restartPolicy: Never
					containers: [{name: tick, image: "` + cluster.Busybox + `", command: [date]}]
`)
	f.await("a job of the schedule", func(ctx context.Context) error {
		var jobs batchv1.JobList
		if err := f.Get(ctx, "/apis/batch/v1/namespaces/"+f.namespace+"/jobs", &jobs); err != nil {
			return err
		}
		for _, job := range jobs.Items {
			if job.Status.Succeeded > 0 {
				return nil
			}
		}
		return fmt.Errorf("there are %d jobs, none of them complete", len(jobs.Items))
	})
}

func TestDaemonSet(t *testing.T) {
	f := start(t)
	f.apply(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
	selector: {matchLabels: {app: agent}}
	template:
		metadata: {labels: {app: agent}}
		spec:
			terminationGracePeriodSeconds: 1
			containers: [{name: agent, image: "` + cluster.Busybox + `", command: [sleep, infinity]}]
`)
	nodes := map[string]bool{}
	for _, pod := range f.awaitPods("app=agent", len(f.Nodes)) {
		nodes[pod.Spec.NodeName] = true
	}
	if len(nodes) != len(f.Nodes) {
		t.Errorf("pods are on %v", nodes)
	}
	f.kubectl("set", "env", "daemonset/agent", "VERSION=2")
	f.kubectl("rollout", "status", "daemonset/agent", "--timeout=3m")
}

// The pods of a StatefulSet are created again with the same names. They find their files on the
// node, but not the content of an emptyDir.
func TestStatefulSet(t *testing.T) {
	f := start(t)
	f.apply(fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
	serviceName: db
	replicas: 2
	selector: {matchLabels: {app: db}}
	template:
		metadata: {labels: {app: db}}
		spec:
			nodeName: %s
			terminationGracePeriodSeconds: 1
			containers:
			- name: db
				image: %s
				command: [sh, -c, "echo $HOSTNAME >>/keep/$HOSTNAME; echo $HOSTNAME >>/scratch/$HOSTNAME; exec sleep infinity"]
				volumeMounts: [{name: keep, mountPath: /keep}, {name: scratch, mountPath: /scratch}]
			volumes:
			- {name: keep, hostPath: {path: "%s/stateful", type: DirectoryOrCreate}}
			- {name: scratch, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
`, f.Nodes[0].Name, cluster.Busybox, f.Nodes[0].Disk()))
	before := map[string]string{}
	for _, pod := range f.awaitPods("app=db", 2) {
		before[pod.Name] = string(pod.UID)
	}
	f.kubectl("delete", "pod", "db-0", "db-1")
	for _, pod := range f.awaitPods("app=db", 2) {
		if uid, known := before[pod.Name]; !known || uid == string(pod.UID) {
			t.Errorf("%s is %s, was %s", pod.Name, pod.UID, uid)
		}
		if text := f.exec(pod.Name, "cat /keep/$HOSTNAME"); text != pod.Name+"\n"+pod.Name+"\n" {
			t.Errorf("hostPath volume has %q", text)
		}
		if text := f.exec(pod.Name, "cat /scratch/$HOSTNAME"); text != pod.Name+"\n" {
			t.Errorf("emptyDir volume has %q", text)
		}
	}
}
