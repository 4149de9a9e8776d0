package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/micarun/mica/e2e/cluster"
)

// patience bounds every wait whose length does not depend on the test's own periods: the machine
// may be busy with other tests.
const patience = 3 * time.Minute

// fixture is one test's namespace.
type fixture struct {
	suite
	t         *testing.T
	ctx       context.Context // the test's
	namespace string
}

// start makes a namespace for the test, which runs in parallel with others. At the end of the test,
// the namespace is deleted with everything in it.
func start(t *testing.T) *fixture {
	t.Helper()
	t.Parallel()
	return startAlone(t)
}

// startAlone is start for a test that changes more than its namespace.
func startAlone(t *testing.T) *fixture {
	t.Helper()
	words := regexp.MustCompile(`[A-Z]+[a-z0-9]*`).FindAllString(strings.TrimPrefix(t.Name(), "Test"), -1)
	f := &fixture{suite: shared, t: t, ctx: t.Context(), namespace: strings.ToLower(strings.Join(words, "-"))}
	f.clear(f.ctx) // left by an earlier run
	if _, err := f.Kubectl(f.ctx, "create", "namespace", f.namespace); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			f.describe()
		}
		f.clear(context.Background())
	})
	f.await("service account", func(ctx context.Context) error {
		var account corev1.ServiceAccount
		return f.Get(ctx, f.path("serviceaccounts/default"), &account)
	})
	return f
}

// clear deletes the namespace and waits until it is gone.
func (f *fixture) clear(ctx context.Context) {
	f.t.Helper()
	if _, err := f.Kubectl(ctx, "delete", "namespace", f.namespace, "--ignore-not-found", "--timeout=3m"); err != nil {
		f.t.Error(err)
	}
}

// describe logs information that may explain a failure.
func (f *fixture) describe() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, arguments := range [][]string{
		{"get", "all", "--output=wide"},
		{"describe", "pods"},
		{"get", "events", "--sort-by=.lastTimestamp"},
	} {
		out, err := f.Kubectl(ctx, append([]string{"--namespace", f.namespace}, arguments...)...)
		f.t.Logf("kubectl %s: %v\n%s", strings.Join(arguments, " "), err, out)
	}
}

// path is the API path of a core object of the namespace.
func (f *fixture) path(name string) string {
	return "/api/v1/namespaces/" + f.namespace + "/" + name
}

// kubectl runs kubectl in the namespace and returns its output.
//
//nolint:contextcheck // the context of a fixture is the test's
func (f *fixture) kubectl(arguments ...string) string {
	f.t.Helper()
	out, err := f.try(f.ctx, arguments...)
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

// try is kubectl for a command that may fail.
func (f *fixture) try(ctx context.Context, arguments ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return f.Kubectl(ctx, append([]string{"--namespace", f.namespace}, arguments...)...)
}

// apply creates the objects of a manifest. A tab in it means two spaces.
func (f *fixture) apply(manifest string) {
	f.t.Helper()
	manifest = strings.ReplaceAll(manifest, "\t", "  ")
	if _, err := f.KubectlInput(f.ctx, manifest, "--namespace", f.namespace, "apply", "--filename=-"); err != nil {
		f.t.Fatalf("%v\n%s", err, manifest)
	}
}

// pod creates a pod; spec is the manifest's spec, indented by one tab.
func (f *fixture) pod(name, spec string) {
	f.t.Helper()
	f.apply(fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata:\n\tname: %[1]s\n\tlabels: {app: %[1]s}\nspec:\n\tterminationGracePeriodSeconds: 1\n%[2]s", name, spec))
}

// await waits until check succeeds.
//
//nolint:contextcheck // the context of a fixture is the test's
func (f *fixture) await(what string, check func(context.Context) error) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, patience)
	defer cancel()
	if err := cluster.Await(ctx, what, check); err != nil {
		f.t.Fatal(err)
	}
}

// get returns the pod.
func (f *fixture) get(ctx context.Context, name string) (corev1.Pod, error) {
	var pod corev1.Pod
	err := f.Get(ctx, f.path("pods/"+name), &pod)
	return pod, err
}

// awaitPod waits until want returns nil for the pod; want's error says what is missing.
func (f *fixture) awaitPod(name string, want func(corev1.Pod) error) corev1.Pod {
	f.t.Helper()
	var pod corev1.Pod
	f.await("pod "+name, func(ctx context.Context) (err error) {
		if pod, err = f.get(ctx, name); err != nil {
			return err
		}
		return want(pod)
	})
	return pod
}

// ready checks that a pod is ready.
func ready(pod corev1.Pod) error {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("not ready: %s", status(pod))
}

// ended checks that a pod is in a final phase.
func ended(phase corev1.PodPhase) func(corev1.Pod) error {
	return func(pod corev1.Pod) error {
		if pod.Status.Phase != phase {
			return fmt.Errorf("phase is %s, want %s: %s", pod.Status.Phase, phase, status(pod))
		}
		return nil
	}
}

// status summarises the states of a pod's containers.
func status(pod corev1.Pod) string {
	text := string(pod.Status.Phase) + " " + pod.Status.Reason + " " + pod.Status.Message
	for _, c := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		text += fmt.Sprintf(" %s: ready %t, restarts %d", c.Name, c.Ready, c.RestartCount)
		if w := c.State.Waiting; w != nil {
			text += fmt.Sprintf(", waiting %s %s", w.Reason, w.Message)
		}
		if e := c.State.Terminated; e != nil {
			text += fmt.Sprintf(", ended %d %s", e.ExitCode, e.Reason)
		}
	}
	return text
}

// pods returns the pods with a label, which may be empty.
func (f *fixture) pods(ctx context.Context, label string) ([]corev1.Pod, error) {
	var list corev1.PodList
	err := f.Get(ctx, f.path("pods?labelSelector="+url.QueryEscape(label)), &list)
	return list.Items, err
}

// awaitPods waits until exactly count pods have the label and all are ready.
func (f *fixture) awaitPods(label string, count int) []corev1.Pod {
	f.t.Helper()
	var pods []corev1.Pod
	f.await(fmt.Sprintf("%d pods with %s", count, label), func(ctx context.Context) (err error) {
		if pods, err = f.pods(ctx, label); err != nil {
			return err
		}
		for _, pod := range pods {
			err = errors.Join(err, ready(pod))
		}
		if len(pods) != count {
			err = errors.Join(err, fmt.Errorf("there are %d pods", len(pods)))
		}
		return err
	})
	return pods
}

// awaitLog waits until the log of the pod's container has text.
func (f *fixture) awaitLog(text, pod string, arguments ...string) {
	f.t.Helper()
	f.await(fmt.Sprintf("%q in the log of %s", text, pod), func(ctx context.Context) error {
		log, err := f.try(ctx, append([]string{"logs", pod}, arguments...)...)
		if err == nil && !strings.Contains(log, text) {
			err = fmt.Errorf("the log is %q", log)
		}
		return err
	})
}

// exec runs a shell command in the pod's first container.
func (f *fixture) exec(pod, command string) string {
	f.t.Helper()
	return f.kubectl("exec", pod, "--", "sh", "-c", command)
}

// awaitEvent waits for an event of the object with the reason and part of the message.
func (f *fixture) awaitEvent(object, reason, message string) {
	f.t.Helper()
	f.await(fmt.Sprintf("event %s of %s", reason, object), func(ctx context.Context) error {
		var events corev1.EventList
		selector := url.QueryEscape("involvedObject.name=" + object)
		if err := f.Get(ctx, f.path("events?fieldSelector="+selector), &events); err != nil {
			return err
		}
		var seen []string
		for _, event := range events.Items {
			if event.Reason == reason && strings.Contains(event.Message, message) {
				return nil
			}
			seen = append(seen, event.Reason+": "+event.Message)
		}
		return fmt.Errorf("the events are %q", seen)
	})
}

// fetch gets a page, as a process on the node would.
func (f *fixture) fetch(ctx context.Context, n *cluster.Node, address string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return "", err
	}
	client := &http.Client{Transport: &http.Transport{DialContext: n.Dial, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("get %s: %s", address, response.Status)
	}
	return string(body), err
}
