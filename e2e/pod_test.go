package e2e

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/patience"
)

func TestPodLifeCycle(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	response, err := f.Runtime.PodSandboxStatus(f.ctx, p.id, true)
	f.no(err)
	got := response.Status
	if got.State != runtimeapi.PodSandboxState_SANDBOX_READY || got.Metadata.Name != p.config.Metadata.Name || got.CreatedAt == 0 {
		t.Errorf("status of a new pod is %v", got)
	}
	if got.GetNetwork().GetIp() == "" || response.Timestamp == 0 {
		t.Errorf("status has address %q and timestamp %d, want both", got.GetNetwork().GetIp(), response.Timestamp)
	}
	config := f.containerConfig(busyboxImage, "sleep", "1000")
	id := f.create(p, config)
	if state := f.status(id).State; state != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("created container is %v", state)
	}
	f.no(f.Runtime.StartContainer(f.ctx, id))
	if state := f.status(id).State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("started container is %v", state)
	}
	f.no(f.Runtime.StopContainer(f.ctx, id, 0))
	ended := f.status(id)
	if ended.State != runtimeapi.ContainerState_CONTAINER_EXITED || ended.ExitCode != 137 || ended.FinishedAt < ended.StartedAt {
		t.Errorf("stopped container is %v, code %d", ended.State, ended.ExitCode)
	}
	f.no(f.Runtime.RemoveContainer(f.ctx, id))
	f.no(f.Runtime.StopPodSandbox(f.ctx, p.id))
	response, err = f.Runtime.PodSandboxStatus(f.ctx, p.id, false)
	f.no(err)
	if response.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("stopped pod is %v", response.Status.State)
	}
	f.no(f.Runtime.RemovePodSandbox(f.ctx, p.id))
	if _, err = f.Runtime.PodSandboxStatus(f.ctx, p.id, false); status.Code(err) != codes.NotFound {
		t.Errorf("status of a removed pod: %v, want NotFound", err)
	}
}

func TestExitCodes(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	tests := map[string]struct {
		script string
		code   int32
		reason string
	}{
		"success": {"true", 0, "Completed"},
		"failure": {"exit 42", 42, "Error"},
		"signal":  {"sh -c 'kill -9 $$'; exit $?", 137, "Error"},
	}
	for name, test := range tests {
		got := f.await(f.start(p, f.containerConfig(busyboxImage, "sh", "-c", test.script)))
		if got.ExitCode != test.code || got.Reason != test.reason {
			t.Errorf("%s: code %d, reason %q; want %d, %q", name, got.ExitCode, got.Reason, test.code, test.reason)
		}
	}
}

// A container that is killed at any moment of its start is reported as killed, and the start
// neither fails nor hangs.
func TestKilledWhileStarted(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	for i := range 60 {
		id := f.create(p, f.containerConfig(busyboxImage, "sleep", "1000"))
		pid := f.inspect(id).Pid
		ctx, cancel := context.WithTimeout(f.ctx, patience.Of(time.Minute))
		defer cancel()
		started := make(chan error, 1)
		go func() { started <- f.Runtime.StartContainer(ctx, id) }()
		time.Sleep(time.Duration(i) * 300 * time.Microsecond)
		f.no(syscall.Kill(pid, syscall.SIGKILL))
		// If the kill was earlier than the call, there is nothing left to start.
		if err := <-started; err != nil && status.Code(err) != codes.FailedPrecondition {
			t.Errorf("start of a container that is killed: %v", err)
		}
		if got := f.await(id); got.ExitCode != 137 || got.Reason != "Error" {
			t.Errorf("code %d, reason %q, message %q", got.ExitCode, got.Reason, got.Message)
		}
		f.no(f.Runtime.RemoveContainer(f.ctx, id))
	}
}

func TestMissingCommand(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	f.pull(busyboxImage)
	config := f.containerConfig(busyboxImage, "/no/such/program")
	id, err := f.Runtime.CreateContainer(f.ctx, p.id, config, p.config)
	if err == nil {
		err = f.Runtime.StartContainer(f.ctx, id)
	}
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("error is %v, want one that names the program", err)
	}
}

func TestStopAndRemoveAreIdempotent(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	id := f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	for range 2 {
		f.no(f.Runtime.StopContainer(f.ctx, id, 0))
	}
	for range 2 {
		f.no(f.Runtime.RemoveContainer(f.ctx, id))
	}
	for range 2 {
		f.no(f.Runtime.StopPodSandbox(f.ctx, p.id))
	}
	for range 2 {
		f.no(f.Runtime.RemovePodSandbox(f.ctx, p.id))
	}
	unknown := strings.Repeat("0", 64)
	f.no(f.Runtime.StopContainer(f.ctx, unknown, 0))
	f.no(f.Runtime.RemoveContainer(f.ctx, unknown))
	f.no(f.Runtime.StopPodSandbox(f.ctx, unknown))
	f.no(f.Runtime.RemovePodSandbox(f.ctx, unknown))
}

func TestGraceThenKill(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	polite := f.containerConfig(busyboxImage, "sh", "-c", "trap 'echo bye; exit 7' TERM; echo up; while true; do sleep 0.05; done")
	id := f.start(p, polite)
	f.eventually("the trap is set", func() bool { return text(f.log(p, polite)) == "up\n" })
	f.no(f.Runtime.StopContainer(f.ctx, id, 20))
	if got := f.status(id); got.ExitCode != 7 {
		t.Errorf("container that ends on SIGTERM has code %d, want 7", got.ExitCode)
	}
	if got := text(f.log(p, polite)); got != "up\nbye\n" {
		t.Errorf("its log is %q", got)
	}
	deaf := f.start(p, f.containerConfig(busyboxImage, "sh", "-c", "trap '' TERM; while true; do sleep 0.05; done"))
	f.no(f.Runtime.StopContainer(f.ctx, deaf, 1))
	if got := f.status(deaf); got.ExitCode != 137 {
		t.Errorf("container that ignores SIGTERM has code %d, want 137", got.ExitCode)
	}
}

func TestStopSignalOfImage(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	config := f.containerConfig(toolsImage, "sh", "-c", "trap 'exit 9' USR1; echo up; while true; do sleep 0.05; done")
	id := f.start(p, config)
	f.eventually("the trap is set", func() bool { return text(f.log(p, config)) == "up\n" })
	f.no(f.Runtime.StopContainer(f.ctx, id, 20))
	if got := f.status(id); got.ExitCode != 9 {
		t.Errorf("code is %d, want 9: the image's stop signal is SIGUSR1", got.ExitCode)
	}
}

// The signal in the container's config has priority over the image's.
func TestStopSignalOfConfig(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	config := f.containerConfig(toolsImage, "sh", "-c", "trap 'exit 8' HUP; trap 'exit 9' USR1; echo up; while true; do sleep 0.05; done")
	config.StopSignal = runtimeapi.Signal_SIGNAL_SIGHUP
	id := f.start(p, config)
	f.eventually("the traps are set", func() bool { return text(f.log(p, config)) == "up\n" })
	f.no(f.Runtime.StopContainer(f.ctx, id, 20))
	if got := f.status(id); got.ExitCode != 8 || got.StopSignal != runtimeapi.Signal_SIGNAL_SIGHUP {
		t.Errorf("code is %d and signal %v, want 8 and SIGHUP", got.ExitCode, got.StopSignal)
	}
}

func TestImageConfigIsUsed(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	if got := f.output(p, f.containerConfig(toolsImage)); got != "from-image\n" {
		t.Errorf("entrypoint and command of the image printed %q", got)
	}
	config := f.containerConfig(toolsImage, "sh", "-c", "id -un; pwd; echo $FROM_IMAGE $OWN")
	config.Envs = []*runtimeapi.KeyValue{{Key: "OWN", Value: []byte("own")}}
	if got := f.output(p, config); got != "app\n/work\nyes own\n" {
		t.Errorf("user, directory and environment are %q", got)
	}
}

func TestListFilters(t *testing.T) {
	f := start(t)
	first, second := f.runPod(f.podConfig()), f.runPod(f.podConfig())
	f.no(f.Runtime.StopPodSandbox(f.ctx, second.id))
	container := f.containerConfig(busyboxImage, "sleep", "1000")
	container.Labels = map[string]string{"role": "worker"}
	id := f.start(first, container)
	other := f.create(first, f.containerConfig(busyboxImage, "true"))

	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	pods := map[string]*runtimeapi.PodSandboxFilter{
		"id":        {Id: first.id},
		"id prefix": {Id: first.id[:13]},
		"state":     {State: ready},
		"label":     {LabelSelector: first.config.Labels},
	}
	for name, filter := range pods {
		list, err := f.Runtime.ListPodSandbox(f.ctx, filter)
		f.no(err)
		if len(list) != 1 || list[0].Id != first.id {
			t.Errorf("pods by %s: %v, want the first", name, list)
		}
	}
	running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	containers := map[string]*runtimeapi.ContainerFilter{
		"id":            {Id: id},
		"state":         {State: running},
		"label":         {LabelSelector: container.Labels},
		"pod and label": {PodSandboxId: first.id, LabelSelector: container.Labels},
	}
	for name, filter := range containers {
		list, err := f.Runtime.ListContainers(f.ctx, filter)
		f.no(err)
		if len(list) != 1 || list[0].Id != id {
			t.Errorf("containers by %s: %v, want the running one", name, list)
		}
	}
	list, err := f.Runtime.ListContainers(f.ctx, &runtimeapi.ContainerFilter{PodSandboxId: first.id})
	f.no(err)
	if len(list) != 2 {
		t.Errorf("pod has %d containers, want %s and %s", len(list), id, other)
	}
}

// The status of a pod has its containers, its time and its handler. The status of a container has
// everything that the container was created from.
func TestStatusIsComplete(t *testing.T) {
	f := start(t)
	status, err := f.Runtime.Status(f.ctx, false)
	f.no(err)
	var handler string
	for _, h := range status.RuntimeHandlers {
		handler = max(handler, h.Name)
	}
	p := pod{config: f.podConfig()}
	p.id, err = f.Runtime.RunPodSandbox(f.ctx, p.config, handler)
	f.no(err)
	config := f.containerConfig(busyboxImage, "sleep", "1000")
	config.Image.UserSpecifiedImage = "busybox"
	config.Image.Annotations = map[string]string{"a": "b"}
	config.StopSignal = runtimeapi.Signal_SIGNAL_SIGINT
	config.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 33}
	config.Linux.SecurityContext.SupplementalGroups = []int64{77}
	dir := t.TempDir()
	config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: dir, Readonly: true}}
	running, created := f.start(p, config), f.create(p, f.containerConfig(busyboxImage, "true"))
	before := time.Now().UnixNano()
	response, err := f.Runtime.PodSandboxStatus(f.ctx, p.id, true)
	f.no(err)
	if response.Status.RuntimeHandler != handler || handler == "" || response.Timestamp < before || response.Timestamp > time.Now().UnixNano() {
		t.Errorf("handler is %q, want %q; timestamp %d, asked at %d", response.Status.RuntimeHandler, handler, response.Timestamp, before)
	}
	// The kubelet takes the first of several containers with the same name as the latest.
	var states []string
	for _, s := range response.ContainersStatuses {
		states = append(states, s.Id+" "+s.State.String())
	}
	want := []string{created + " CONTAINER_CREATED", running + " CONTAINER_RUNNING"}
	if !slices.Equal(states, want) || !json.Valid([]byte(response.Info["info"])) {
		t.Errorf("containers of the status are %v, want %v; info %q", states, want, response.Info)
	}
	got := f.status(running)
	image := f.imageStatus(busyboxImage)
	if got.Image.GetImage() != "busybox" || got.Image.GetUserSpecifiedImage() != "busybox" || got.Image.GetAnnotations()["a"] != "b" || got.ImageId != image.Id || got.ImageRef != image.RepoDigests[0] {
		t.Errorf("image is %v, ID %s, ref %s; want that of %v", got.Image, got.ImageId, got.ImageRef, image)
	}
	if got.StopSignal != runtimeapi.Signal_SIGNAL_SIGINT || got.LogPath == "" || got.StartedAt < got.CreatedAt || got.CreatedAt == 0 {
		t.Errorf("stop signal %v, log %q, created at %d, started at %d", got.StopSignal, got.LogPath, got.CreatedAt, got.StartedAt)
	}
	if u := got.User.GetLinux(); u.GetUid() != 33 || u.GetGid() != 33 || !slices.Equal(u.GetSupplementalGroups(), []int64{33, 77}) {
		t.Errorf("user is %v", u)
	}
	if len(got.Mounts) != 1 || got.Mounts[0].HostPath != dir || got.Mounts[0].ContainerPath != "/data" || !got.Mounts[0].Readonly {
		t.Errorf("mounts are %v", got.Mounts)
	}
	list, err := f.Runtime.ListContainers(f.ctx, &runtimeapi.ContainerFilter{Id: running})
	f.no(err)
	if len(list) != 1 || list[0].ImageId != image.Id || list[0].ImageRef != got.ImageRef || list[0].Image.GetUserSpecifiedImage() != "busybox" {
		t.Errorf("listed as %v", list)
	}
}

// allSame makes the same call six times concurrently and checks that all return the same ID.
func allSame(f *fixture, what string, make func() (string, error)) string {
	f.t.Helper()
	var ids [6]string
	var group sync.WaitGroup
	for n := range ids {
		group.Go(func() {
			var err error
			if ids[n], err = make(); err != nil {
				f.t.Errorf("%s: %v", what, err)
			}
		})
	}
	group.Wait()
	for _, id := range ids {
		if id != ids[0] {
			f.t.Errorf("one %s has the IDs %s and %s", what, ids[0], id)
		}
	}
	return ids[0]
}

func TestRetriesJoin(t *testing.T) {
	f := start(t)
	f.pull(busyboxImage)
	config := f.podConfig()
	pod := allSame(f, "pod", func() (string, error) { return f.Runtime.RunPodSandbox(f.ctx, config, "") })
	container := f.containerConfig(busyboxImage, "sleep", "1000")
	allSame(f, "container", func() (string, error) { return f.Runtime.CreateContainer(f.ctx, pod, container, config) })
}

func TestManyPodsAtOnce(t *testing.T) {
	f := start(t)
	f.pull(busyboxImage)
	const count = 20
	ips := make([]string, count)
	var group sync.WaitGroup
	for n := range count {
		group.Go(func() {
			p := f.runPod(f.podConfig())
			ips[n] = f.ip(p)
			f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
		})
	}
	group.Wait()
	seen := map[string]bool{}
	for _, ip := range ips {
		if ip == "" || seen[ip] {
			t.Errorf("address %q is empty or a duplicate", ip)
		}
		seen[ip] = true
	}
}

func TestSharedProcessNamespace(t *testing.T) {
	f := start(t)
	config := f.podConfig()
	options := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}
	config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: options}
	p := f.runPod(config)
	sleeper := f.containerConfig(busyboxImage, "sleep", "4321")
	sleeper.Linux.SecurityContext.NamespaceOptions = options
	f.start(p, sleeper)
	watcher := f.containerConfig(busyboxImage, "sh", "-c", "while ! pgrep sleep >/dev/null; do :; done; echo seen")
	watcher.Linux.SecurityContext.NamespaceOptions = options
	if got := f.output(p, watcher); got != "seen\n" {
		t.Errorf("second container printed %q, want seen", got)
	}
	third := f.containerConfig(busyboxImage, "sh", "-c", "pgrep sleep || echo alone")
	if got := f.output(p, third); got != "alone\n" {
		t.Errorf("container with a separate namespace printed %q", got)
	}
}

// A container joins another container's PID namespace, whatever namespaces the pod has. When it
// ends, the target continues to run.
func TestTargetProcessNamespace(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	target := f.start(p, f.containerConfig(busyboxImage, "sleep", "4321"))
	debugger := f.containerConfig(busyboxImage, "sh", "-c", "until pgrep sleep; do :; done; kill -0 1 && echo seen; sleep 4322")
	debugger.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: target}
	id := f.start(p, debugger)
	f.eventually("the target's process is visible", func() bool { return text(f.log(p, debugger)) == "1\nseen\n" })
	f.no(f.Runtime.StopContainer(f.ctx, id, 0))
	if got := f.exec(target, "sh", "-c", "pgrep -f '[s]leep 4322' || echo gone"); got != "gone\n" {
		t.Errorf("the target still sees %q of the other container", got)
	}
	if got := f.status(target).State; got != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("target is %v after the other container's end", got)
	}
	other := f.runPod(f.podConfig())
	if _, err := f.Runtime.CreateContainer(f.ctx, other.id, debugger, other.config); status.Code(err) != codes.InvalidArgument {
		t.Errorf("target in another pod: %v, want InvalidArgument", err)
	}
	f.no(f.Runtime.StopContainer(f.ctx, target, 0))
	debugger.Metadata.Name = "late"
	if _, err := f.Runtime.CreateContainer(f.ctx, p.id, debugger, p.config); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("ended target: %v, want FailedPrecondition", err)
	}
}

func TestPodFiles(t *testing.T) {
	f := start(t)
	config := f.podConfig()
	config.Hostname = "a-name"
	config.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"192.0.2.1"}, Searches: []string{"example.org"}, Options: []string{"ndots:3"}}
	p := f.runPod(config)
	got := f.output(p, f.containerConfig(busyboxImage, "sh", "-c", "hostname; cat /etc/hostname; cat /etc/resolv.conf"))
	want := "a-name\na-name\nsearch example.org\nnameserver 192.0.2.1\noptions ndots:3\n"
	if got != want {
		t.Errorf("host name and resolver are %q, want %q", got, want)
	}
	shm := f.output(p, f.containerConfig(busyboxImage, "sh", "-c", "echo x > /dev/shm/file; df -m /dev/shm | tail -1 | awk '{print $2}'"))
	if shm != "64\n" {
		t.Errorf("size of /dev/shm is %q MiB, want 64", shm)
	}
	if got := f.output(p, f.containerConfig(busyboxImage, "cat", "/dev/shm/file")); got != "x\n" {
		t.Errorf("second container sees %q in /dev/shm, want x", got)
	}
}

func TestSysctls(t *testing.T) {
	f := start(t)
	config := f.podConfig()
	config.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "77", "kernel.shm_rmid_forced": "1"}
	script := "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced"
	if got := f.output(f.runPod(config), f.containerConfig(busyboxImage, "sh", "-c", script)); got != "77\n1\n" {
		t.Errorf("sysctls are %q", got)
	}
}

func TestUnknownObjects(t *testing.T) {
	f := start(t)
	unknown := strings.Repeat("f", 64)
	calls := map[string]error{}
	_, calls["PodSandboxStatus"] = f.Runtime.PodSandboxStatus(f.ctx, unknown, false)
	_, calls["ContainerStatus"] = f.Runtime.ContainerStatus(f.ctx, unknown, false)
	_, calls["ContainerStats"] = f.Runtime.ContainerStats(f.ctx, unknown)
	_, _, calls["ExecSync"] = f.Runtime.ExecSync(f.ctx, unknown, []string{"true"}, 0)
	calls["StartContainer"] = f.Runtime.StartContainer(f.ctx, unknown)
	_, calls["CreateContainer"] = f.Runtime.CreateContainer(f.ctx, unknown, f.containerConfig(busyboxImage, "true"), f.podConfig())
	calls["ReopenContainerLog"] = f.Runtime.ReopenContainerLog(f.ctx, unknown)
	for call, err := range calls {
		if status.Code(err) != codes.NotFound {
			t.Errorf("%s of an unknown object: %v, want NotFound", call, err)
		}
	}
}
