package e2e

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/internal/patience"
)

// The daemon is killed repeatedly while a container prints numbered lines at full speed and other
// containers exit. No line is lost or duplicated, and every exit code is right.
func TestKilledDaemonLosesNothing(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	const count = 300_000
	printer := f.containerConfig(toolsImage, "/bin/lines", "300000", "5000")
	id := f.start(p, printer)
	codes := map[string]int32{}
	for range 3 {
		for code, script := range map[int32]string{0: "sleep 0.3", 42: "sleep 0.3; exit 42", 137: "sleep 0.3; sh -c 'kill -9 $$'; exit $?"} {
			codes[f.start(p, f.containerConfig(busyboxImage, "sh", "-c", script))] = code
		}
		f.no(f.Kill())
		time.Sleep(500 * time.Millisecond) // the containers exit while no daemon runs
		took, err := f.StartDaemon(f.ctx)
		f.no(err)
		t.Logf("ready after %s", took)
	}
	for container, code := range codes {
		if got := f.await(container); got.ExitCode != code {
			t.Errorf("exit code is %d, want %d", got.ExitCode, code)
		}
	}
	if got := f.await(id); got.ExitCode != 0 {
		t.Errorf("the printing container exited with %d", got.ExitCode)
	}
	checkNumbered(t, f.log(p, printer), count)
}

func TestRestartKeepsEverything(t *testing.T) {
	f := start(t)
	config := f.podConfig()
	hostPort := f.freePort()
	config.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: int32(hostPort)}}
	p := f.runPod(config)
	server := f.start(p, f.containerConfig(nginxImage))
	created := f.create(p, f.containerConfig(busyboxImage, "echo", "later"))
	stopped := f.runPod(f.podConfig())
	f.no(f.Runtime.StopPodSandbox(f.ctx, stopped.id))
	before, err := f.Runtime.ListPodSandbox(f.ctx, nil)
	f.no(err)
	ip := f.ip(p)

	for name, end := range map[string]func() error{"asked to stop": f.StopDaemon, "killed": f.Kill} {
		f.no(end())
		if _, err := f.StartDaemon(f.ctx); err != nil {
			t.Fatalf("daemon %s: %v", name, err)
		}
		after, err := f.Runtime.ListPodSandbox(f.ctx, nil)
		f.no(err)
		if len(after) != len(before) || f.ip(p) != ip || f.status(server).State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("daemon %s: %d pods, address %s, server %v", name, len(after), f.ip(p), f.status(server).State)
		}
		f.eventually("nginx answers after the daemon was "+name, func() bool {
			_, err := get(f.ctx, "http://"+ip+"/")
			return err == nil
		})
		if got := f.exec(server, "echo", "exec"); got != "exec\n" {
			t.Errorf("daemon %s: exec printed %q", name, got)
		}
	}
	f.no(f.Runtime.StartContainer(f.ctx, created))
	if got := f.await(created); got.ExitCode != 0 {
		t.Errorf("container created before the restarts ended with %d", got.ExitCode)
	}
}

func TestAttachWorksAfterRestart(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, "cat")
	config.Stdin, config.StdinOnce = true, true
	id := f.start(p, config)
	f.no(f.Kill())
	_, err := f.StartDaemon(f.ctx)
	f.no(err)
	response, err := f.Runtime.Attach(f.ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
	f.no(err)
	s := &streams{stdin: strings.NewReader("typed after the restart\n")}
	f.no(f.stream("spdy", response.Url, s))
	if got := s.stdout.String(); got != "typed after the restart\n" {
		t.Errorf("attached client received %q", got)
	}
	f.await(id)
}

// When the keeper dies, the daemon starts another one and containers keep running. No container
// that exited in between is reported as successful.
func TestKilledKeeper(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, "sh", "-c", "n=0; while true; do n=$((n+1)); echo $n; sleep 0.1; done")
	id := f.start(p, config)
	keeper, err := f.KeeperPid()
	f.no(err)
	if keeper == 0 {
		t.Fatal("no keeper runs")
	}
	f.no(unix.Kill(keeper, unix.SIGKILL))
	f.eventually("another keeper runs", func() bool {
		pid, err := f.KeeperPid()
		return err == nil && pid != 0 && pid != keeper
	})
	lines := len(f.log(p, config))
	f.eventually("the log grows", func() bool { return len(f.log(p, config)) > lines+3 })
	if got := f.exec(id, "echo", "exec"); got != "exec\n" {
		t.Errorf("exec printed %q", got)
	}
	f.no(f.Runtime.StopContainer(f.ctx, id, 0))
	ended := f.status(id)
	if ended.State != runtimeapi.ContainerState_CONTAINER_EXITED || ended.ExitCode == 0 {
		t.Errorf("stopped container is %v with code %d", ended.State, ended.ExitCode)
	}
	next := f.await(f.start(p, f.containerConfig(busyboxImage, "sh", "-c", "exit 6")))
	if next.ExitCode != 6 {
		t.Errorf("container of the new keeper ended with %d, want 6", next.ExitCode)
	}
}

func TestDaemonKilledWhileItCreates(t *testing.T) {
	f := start(t)
	f.pull(busyboxImage)
	for round := range 5 {
		config := f.podConfig()
		done := make(chan struct{})
		client := f.Runtime
		go func() {
			defer close(done)
			_, _ = client.RunPodSandbox(f.ctx, config, "") // the result does not matter
		}()
		time.Sleep(time.Duration(round*10) * time.Millisecond) // each round kills at another moment
		f.no(f.Kill())
		<-done
		_, err := f.StartDaemon(f.ctx)
		f.no(err)
		if _, err := f.Mica(f.ctx, "check"); err != nil {
			t.Errorf("check after a kill in mid-creation: %v", err)
		}
		// The kubelet's retry succeeds.
		p := f.runPod(config)
		f.await(f.start(p, f.containerConfig(busyboxImage, "true")))
		f.no(f.RemovePod(f.ctx, p.id))
	}
}

// Every subscriber gets all events of containers and pods in order, with the status of the pod and
// of all its containers.
func TestEvents(t *testing.T) {
	f := start(t)
	type subscriber struct {
		events <-chan *runtimeapi.ContainerEventResponse
		ended  <-chan struct{}
	}
	var subscribers [3]subscriber
	for n := range subscribers {
		subscribers[n].events, subscribers[n].ended = f.events()
	}
	p := f.runPod(f.podConfig())
	other := f.create(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	id := f.start(p, f.containerConfig(busyboxImage, "sh", "-c", "exit 5"))
	f.await(id)
	f.no(f.Runtime.RemoveContainer(f.ctx, id))
	f.no(f.Runtime.StopPodSandbox(f.ctx, p.id))
	f.no(f.Runtime.RemovePodSandbox(f.ctx, p.id))
	type step struct {
		kind   runtimeapi.ContainerEventType
		states map[string]runtimeapi.ContainerState
	}
	const (
		created = runtimeapi.ContainerState_CONTAINER_CREATED
		exited  = runtimeapi.ContainerState_CONTAINER_EXITED
	)
	for n, s := range subscribers {
		for _, want := range []step{
			{runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, map[string]runtimeapi.ContainerState{other: created, id: created}},
			{runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, nil}, // it may have exited already
			{runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, map[string]runtimeapi.ContainerState{other: created, id: exited}},
			{runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, map[string]runtimeapi.ContainerState{other: created}},
		} {
			event := f.event(s.events, id)
			if event.ContainerEventType != want.kind || event.PodSandboxStatus.GetId() != p.id || event.CreatedAt == 0 {
				t.Errorf("subscriber %d gets %v of pod %q, want %v", n, event.ContainerEventType, event.PodSandboxStatus.GetId(), want.kind)
			}
			states := map[string]runtimeapi.ContainerState{}
			for _, status := range event.ContainersStatuses {
				states[status.Id] = status.State
			}
			if want.states != nil && !maps.Equal(states, want.states) {
				t.Errorf("subscriber %d: %v has the states %v, want %v", n, event.ContainerEventType, states, want.states)
			}
		}
		for _, want := range []runtimeapi.ContainerEventType{runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT} {
			if event := f.event(s.events, p.id); event.ContainerEventType != want {
				t.Errorf("subscriber %d: the pod's event is %v, want %v", n, event.ContainerEventType, want)
			}
		}
	}
	for _, s := range subscribers {
		f.endStreams(s.ended)
	}
}

// A container is removed as soon as its status shows the exit. The event of the exit still comes
// before the event of the removal.
func TestEventsKeepTheirOrder(t *testing.T) {
	f := start(t)
	f.no(f.StopDaemon())
	f.Env = []string{failpoint.Variable + "=exit-recorded=sleep:500ms"} // longer than the removal
	_, err := f.StartDaemon(f.ctx)
	f.no(err)
	events, ended := f.events()
	id := f.start(f.runPod(f.podConfig()), f.containerConfig(busyboxImage, "sh", "-c", "exit 5"))
	f.await(id)
	f.no(f.Runtime.RemoveContainer(f.ctx, id))
	for _, want := range []runtimeapi.ContainerEventType{
		runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
		runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
	} {
		if event := f.event(events, id); event.ContainerEventType != want {
			t.Errorf("event is %v, want %v", event.ContainerEventType, want)
			break
		}
	}
	f.endStreams(ended)
}

// Exit events without a subscriber, for example in a daemon's last moments, are sent again by later
// daemons until a subscriber receives them.
func TestEventsWithoutSubscriber(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	for name, end := range map[string]func() error{"asked to stop": f.StopDaemon, "killed": f.Kill} {
		id := f.start(p, f.containerConfig(busyboxImage, "sh", "-c", "exit 7"))
		f.await(id)
		f.eventually("the container's resources are released", func() bool {
			_, err := os.Stat(filepath.Join(f.State, "containers", id))
			return os.IsNotExist(err)
		})
		for range 2 { // the first two daemons have no subscriber
			f.no(end())
			_, err := f.StartDaemon(f.ctx)
			f.no(err)
		}
		events, ended := f.events()
		if event := f.event(events, id); event.ContainerEventType != runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT {
			t.Errorf("daemon %s: event is %v", name, event.ContainerEventType)
		}
		f.endStreams(ended)
		f.no(end())
		_, err := f.StartDaemon(f.ctx)
		f.no(err)
		events, ended = f.events()
		second := f.start(p, f.containerConfig(busyboxImage, "true"))
		for done := false; !done; {
			event, open := <-events
			if done = event.GetContainerId() == second; !open {
				t.Fatal("the stream has ended")
			}
			if event.GetContainerId() == id {
				t.Errorf("daemon %s: event sent again after a subscriber received it: %v", name, event.ContainerEventType)
			}
		}
		f.endStreams(ended)
	}
}

// A client that subscribes after a restart first gets the events from the time without a daemon,
// once, and then new events.
func TestEventsWhileNoDaemonRuns(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	ends := f.start(p, f.containerConfig(busyboxImage, "sh", "-c", "while [ ! -e /dev/shm/end ]; do sleep 0.1; done; exit 7"))
	f.no(f.Kill())
	f.no(os.WriteFile(filepath.Join(f.State, "pods", p.id, "shm", "end"), nil, 0o644))
	f.eventually("the keeper records the exit while no daemon runs", func() bool {
		_, err := os.Stat(filepath.Join(f.State, "keeper", ends, "exit.json"))
		return err == nil
	})
	_, err := f.StartDaemon(f.ctx)
	f.no(err)
	for range 2 { // a client that subscribes twice gets the events twice
		events, ended := f.events()
		event := f.event(events, ends)
		if event.ContainerEventType != runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT {
			t.Errorf("event is %v", event.ContainerEventType)
		}
		for _, status := range event.ContainersStatuses {
			if status.Id == ends && status.ExitCode != 7 {
				t.Errorf("the event has exit code %d", status.ExitCode)
			}
		}
		f.endStreams(ended)
		for event := range events {
			if event.ContainerId == ends {
				t.Errorf("event sent again: %v", event.ContainerEventType)
			}
		}
	}
}

// events subscribes to the events. Both channels are closed when the stream ends.
func (f *fixture) events() (events chan *runtimeapi.ContainerEventResponse, ended chan struct{}) {
	f.t.Helper()
	events, ended = make(chan *runtimeapi.ContainerEventResponse, 100), make(chan struct{})
	connected := make(chan struct{})
	client := f.Runtime
	go func() {
		defer close(ended)
		defer close(events)
		_ = client.GetContainerEvents(f.ctx, events, func(runtimeapi.RuntimeService_GetContainerEventsClient) { close(connected) })
	}()
	<-connected
	return events, ended
}

// event waits for the next event of a container.
func (f *fixture) event(events <-chan *runtimeapi.ContainerEventResponse, id string) *runtimeapi.ContainerEventResponse {
	f.t.Helper()
	for deadline := time.After(patience.Of(time.Minute)); ; {
		select {
		case event := <-events:
			if event.GetContainerId() == id {
				return event
			}
		case <-deadline:
			f.t.Fatalf("no event of container %s", id)
		}
	}
}

// endStreams ends the streams of the daemon's clients, so that none is counted as a leak.
func (f *fixture) endStreams(ended <-chan struct{}) {
	f.t.Helper()
	f.no(f.Reconnect(f.ctx))
	select {
	case <-ended:
	case <-time.After(patience.Of(time.Minute)):
		f.t.Error("the event stream did not end with its connection")
	}
}

// The check finds running pods whose network is no longer as the daemon made it.
func TestCheckSeesChangedNetwork(t *testing.T) {
	f := start(t)
	untouched := f.runPod(f.podConfig())
	want := map[string]string{}
	for change, what := range map[string]string{
		"ip route del default":                       "no route to 0.0.0.0/0",
		"ip addr flush dev eth0":                     "interface eth0 does not have the address ",
		"ip link set eth0 address 02:00:00:00:00:01": "interface eth0 has the hardware address 02:00:00:00:00:01",
	} {
		p := f.runPod(f.podConfig())
		ns := filepath.Join(f.State, "pods", p.id, "net")
		enter := append([]string{"--net=" + ns}, strings.Fields(change)...)
		if out, err := exec.CommandContext(f.ctx, "nsenter", enter...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", change, err, out)
		}
		want[filepath.Join(f.Data, "cri", "pods", p.id)+": network has changed: "] = what
		defer func() { f.no(f.Runtime.StopPodSandbox(f.ctx, p.id)) }()
	}
	out, err := f.Mica(f.ctx, "check")
	if err == nil {
		t.Error("the check succeeds")
	}
	for path, what := range want {
		_, rest, _ := strings.Cut(out, path)
		if line, _, _ := strings.Cut(rest, "\n"); !strings.Contains(line, what) {
			t.Errorf("check does not report %q of %s:\n%s", what, path, out)
		}
	}
	if strings.Contains(out, untouched.id) {
		t.Errorf("check reports a pod without a change:\n%s", out)
	}
}

// Without a daemon, the check does not change a running pod, and finds inconsistencies.
func TestCheckWithoutDaemon(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	running := f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	ended := f.start(p, f.containerConfig(busyboxImage, "true"))
	f.await(ended)
	f.no(f.awaitCheck(f.ctx)) // until the exited container's resources are released
	f.no(f.StopDaemon())
	if out, err := f.Mica(f.ctx, "check"); err != nil {
		t.Errorf("check of a node whose daemon was stopped: %v: %s", err, out)
	}
	record := filepath.Join(f.Data, "cri", "pods", p.id)
	f.no(os.Rename(record, record+".away"))
	out, err := f.Mica(f.ctx, "check")
	for _, want := range []string{
		filepath.Join(f.Data, "cri", "containers", running) + ": record cannot be used: its pod: ",
		filepath.Join(f.State, "pods", p.id) + ": state directory without a record",
		filepath.Join(f.Data, "network", "attachments", p.id) + ".json: attachment without a pod",
		"lease of unknown pod \"" + p.id + "\"",
		f.CgroupParent() + "/" + p.id + ": cgroup without a record",
	} {
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("check without the pod's record does not contain %q: %v", want, err)
		}
	}
	f.no(os.Rename(record+".away", record))
	_, err = f.StartDaemon(f.ctx)
	f.no(err)
	if got := f.exec(running, "echo", "hi"); got != "hi\n" {
		t.Errorf("the container printed %q", got)
	}
}
