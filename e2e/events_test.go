package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/micarun/mica/e2e/node"
	"github.com/micarun/mica/internal/admin"
)

// gatePlugin is a CNI plugin whose ADD waits for one line in a pipe: the error to fail with, or
// "ok".
const gatePlugin = `#!/bin/sh
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}';;
ADD) read -r answer < %[1]s
	if [ "$answer" != ok ]; then
		printf '{"cniVersion":"1.0.0","code":100,"msg":"%%s"}' "$answer"
		exit 1
	fi
	echo '{"cniVersion":"1.0.0","interfaces":[],"ips":[{"address":"192.0.2.7/24"}],"dns":{}}';;
esac
`

// gatedNetwork makes a node whose pods wait for the test in their network plugin. answer lets one
// pod continue.
func gatedNetwork(t *testing.T) (f *fixture, answer func(string)) {
	t.Helper()
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	f = startOn(t, func(o *node.Options) {
		o.ConfDir = filepath.Join(dir, "net.d")
		dropIn := fmt.Sprintf("[network]\nbin_dirs = [%q]\n", dir)
		conf := `{"cniVersion":"1.0.0","name":"gated","plugins":[{"type":"gate"}]}`
		for file, text := range map[string]string{
			filepath.Join(dir, "gate"):                  fmt.Sprintf(gatePlugin, pipe),
			filepath.Join(o.ConfDir, "1.conflist"):      conf,
			filepath.Join(o.Data, "conf.d", "cni.toml"): dropIn,
		} {
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o755)); err != nil {
				t.Fatal(err)
			}
		}
		if err := syscall.Mkfifo(pipe, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	return f, func(text string) {
		t.Helper()
		// Opening the pipe waits until the plugin has opened it.
		if err := os.WriteFile(pipe, []byte(text+"\n"), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// history returns the output of `mica events`.
func (f *fixture) history(arguments ...string) []admin.Event {
	f.t.Helper()
	out, err := f.Mica(f.ctx, append([]string{"events", "--json"}, arguments...)...)
	f.no(err)
	var list []admin.Event
	for line := range strings.Lines(out) {
		var e admin.Event
		f.no(json.Unmarshal([]byte(line), &e))
		list = append(list, e)
	}
	return list
}

// lastStage returns the name of an operation's last stage, "" before the first.
func lastStage(e admin.Event) string {
	if len(e.Stages) == 0 {
		return ""
	}
	return e.Stages[len(e.Stages)-1].Name
}

// `mica events` shows why a pod is stuck, while it is stuck and afterwards.
func TestEventsNameTheStage(t *testing.T) {
	f, answer := gatedNetwork(t)
	config := f.podConfig()
	name := config.GetMetadata().GetNamespace() + "/" + config.GetMetadata().GetName()
	// The deadline is short, like a kubelet's after its time-out. On a busy machine it may end before
	// the pod reaches its network plugin. Then another call gives up while the plugin waits.
	f.eventually("the log names the stage", func() bool {
		impatient, cancel := context.WithTimeout(f.ctx, 300*time.Millisecond)
		defer cancel()
		if _, err := f.Runtime.RunPodSandbox(impatient, config, ""); status.Code(err) != codes.DeadlineExceeded {
			t.Fatalf("RunPodSandbox = %v", err)
		}
		return strings.Contains(f.LogTail(50), "still under way (set up network for ")
	})
	running := f.history("--running", "--pod", name)
	if len(running) != 1 || running[0].What != "run pod" || lastStage(running[0]) != "set up network" {
		t.Errorf("running: %+v", running)
	}
	if text, err := f.Mica(f.ctx, "events", "--pod", config.GetMetadata().GetName()); err != nil || !strings.Contains(text, "now: set up network") {
		t.Errorf("events: %s, %v", text, err)
	}
	calls := func() int {
		running := f.history("--running", "--pod", name)
		if len(running) != 1 {
			t.Fatalf("running: %+v", running)
		}
		return running[0].Calls
	}
	f.eventually("the calls that gave up do not wait", func() bool { return calls() == 0 })
	retried := make(chan error, 1)
	go func() {
		_, err := f.Runtime.RunPodSandbox(f.ctx, config, "")
		retried <- err
	}()
	f.eventually("the retry joins the creation", func() bool { return calls() == 1 })
	answer("no address left")
	if err := <-retried; err == nil || !strings.Contains(err.Error(), "set up network: ") || !strings.Contains(err.Error(), "no address left") {
		t.Errorf("retry = %v", err)
	}
	failed := f.history("--pod", name)
	at := slices.IndexFunc(failed, func(e admin.Event) bool { return e.Error != "" })
	if at < 0 {
		t.Fatalf("no failure in %+v", failed)
	}
	if last := lastStage(failed[at]); last != "set up network" || !strings.Contains(failed[at].Error, last+": ") {
		t.Errorf("failed at %q: %s", last, failed[at].Error)
	}
	if !slices.ContainsFunc(failed, func(e admin.Event) bool { return e.What == "remove failed pod" && e.Error == "" }) {
		t.Errorf("no removal in %+v", failed)
	}
	if count, err := f.Metric(f.ctx, `mica_operation_failures_total{operation="run pod",stage="set up network"}`); err != nil || count != 1 {
		t.Errorf("failures: %v, %v", count, err)
	}
}

// A call with another config does not join the creation of a pod; one with the same config does.
func TestRunPodSandboxJoinsItsOwnConfigOnly(t *testing.T) {
	f, answer := gatedNetwork(t)
	config := f.podConfig()
	name := config.GetMetadata().GetNamespace() + "/" + config.GetMetadata().GetName()
	type result struct {
		id  string
		err error
	}
	made := make(chan result, 2)
	for calls := range int64(2) {
		go func() {
			id, err := f.Runtime.RunPodSandbox(f.ctx, config, "")
			made <- result{id, err}
		}()
		f.eventually("the call waits for the network", func() bool {
			running := f.history("--running", "--pod", name)
			return len(running) == 1 && running[0].Calls == int(calls)+1 && lastStage(running[0]) == "set up network"
		})
	}
	other := f.podConfig()
	other.Metadata, other.Labels = config.GetMetadata(), map[string]string{"another": "config"}
	if _, err := f.Runtime.RunPodSandbox(f.ctx, other, ""); status.Code(err) != codes.AlreadyExists {
		t.Errorf("RunPodSandbox with another config, during the creation = %v", err)
	}
	answer("ok")
	first, second := <-made, <-made
	f.no(errors.Join(first.err, second.err))
	if first.id != second.id {
		t.Errorf("two pods %s and %s of one identity", first.id, second.id)
	}
	if _, err := f.Runtime.RunPodSandbox(f.ctx, other, ""); status.Code(err) != codes.AlreadyExists {
		t.Errorf("RunPodSandbox with another config, after the creation = %v", err)
	}
	f.no(f.Runtime.StopPodSandbox(f.ctx, first.id))
	f.no(f.Runtime.RemovePodSandbox(f.ctx, first.id))
}

// follower is a running `mica events --follow`.
type follower struct {
	lines *bufio.Scanner
	cmd   *exec.Cmd
}

func (f *fixture) follow(arguments ...string) *follower {
	f.t.Helper()
	arguments = append([]string{"--config", f.Config(), "events", "--follow"}, arguments...)
	cmd := exec.CommandContext(f.ctx, filepath.Join(f.Bin, "mica"), arguments...)
	out, err := cmd.StdoutPipe()
	f.no(err)
	f.no(cmd.Start())
	return &follower{lines: bufio.NewScanner(out), cmd: cmd}
}

// await reads lines until one has all the words.
func (w *follower) await(t *testing.T, words ...string) {
	t.Helper()
	for w.lines.Scan() {
		missing := slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(w.lines.Text(), word) })
		if !missing {
			return
		}
	}
	t.Fatalf("events end without %q", words)
}

// A follower gets all events of a pod. It ends when the daemon ends.
func TestEventsOfPodLifeCycle(t *testing.T) {
	f := start(t)
	w := f.follow()
	p := f.runPod(f.podConfig())
	container := f.containerConfig(busyboxImage, "sh", "-c", "exit 3")
	w.await(t, " run pod ", "["+p.id[:13]+"]: done in ", "make namespaces ", "set up network ")
	id := f.start(p, container)
	w.await(t, " pull image ", "busybox", ": done in ", "resolve ")
	w.await(t, " create container ", "["+id[:13]+"]: done in ", "create by OCI runtime ")
	w.await(t, " container ended ", "["+id[:13]+"]: Error, exit code 3")
	f.no(f.Runtime.RemovePodSandbox(f.ctx, p.id))
	w.await(t, " remove pod ", p.id[:13], ": done in ", "delete network ")
	f.no(f.StopDaemon())
	for w.lines.Scan() {
	}
	if err := w.cmd.Wait(); err != nil {
		t.Errorf("when the daemon ends, mica events --follow exits with %v", err)
	}
	_, err := f.StartDaemon(f.ctx)
	f.no(err)
}

// The metrics that the endpoint serves after a pod's life cycle are those in docs/operations.md.
func TestMetricsAreDocumented(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	f.output(p, f.containerConfig(busyboxImage, "true"))
	doc, err := os.ReadFile(filepath.Join("..", "docs", "operations.md"))
	f.no(err)
	lines, err := f.MetricLines(f.ctx)
	f.no(err)
	count := 0
	for _, line := range lines {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[1] != "TYPE" || !strings.HasPrefix(fields[2], "mica_") {
			continue
		}
		count++
		if !strings.Contains(string(doc), "| `"+fields[2]+"` |") {
			t.Errorf("operations.md does not name %s", fields[2])
		}
	}
	if count < 10 {
		t.Errorf("%d metrics are served:\n%s", count, strings.Join(lines, "\n"))
	}
	for name, want := range map[string]float64{`mica_pods{state="ready"}`: 1, `mica_containers{state="exited"}`: 1, "mica_images": 1} {
		if got, err := f.Metric(f.ctx, name); err != nil || got != want {
			t.Errorf("%s is %v, %v; want %v", name, got, err, want)
		}
	}
	if got, err := f.Metric(f.ctx, "mica_image_fetched_bytes_total"); err != nil || got == 0 {
		t.Errorf("fetched bytes: %v, %v", got, err)
	}
}
