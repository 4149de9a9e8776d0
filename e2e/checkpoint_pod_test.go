package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/node"
	"github.com/micarun/mica/internal/failpoint"
)

// A writer prints each number and then writes it to shared memory; a reader prints what it reads
// there. So the reader never prints a number before the writer.
const (
	writing = `trap 'exit 7' TERM; i=0; while :; do echo $i; echo $i >/dev/shm/n.new; mv /dev/shm/n.new /dev/shm/n; i=$((i+1)); sleep 0.01; done`
	reading = `trap 'exit 8' TERM; while :; do cat /dev/shm/n 2>/dev/null; sleep 0.01; done`
)

// duo is a pod with a writer and a reader container.
type duo struct {
	pod
	configs []*runtimeapi.ContainerConfig
	ids     []string
}

func (f *fixture) runDuo(pid runtimeapi.NamespaceMode) duo {
	f.t.Helper()
	d := duo{pod: f.runPod(f.podConfig())}
	for i, script := range []string{writing, reading} {
		config := f.containerConfig(busyboxImage, "sh", "-c", script)
		config.Metadata.Name = []string{"writer", "reader"}[i]
		config.Linux.SecurityContext.NamespaceOptions.Pid = pid
		d.configs = append(d.configs, config)
		d.ids = append(d.ids, f.start(d.pod, config))
	}
	f.eventually("the reader prints numbers", func() bool { return len(f.log(d.pod, d.configs[1])) > 10 })
	return d
}

// last returns the last number in a container's log, and fails the test if a number is smaller than
// the one before.
func (f *fixture) last(p pod, config *runtimeapi.ContainerConfig) int {
	f.t.Helper()
	last := -1
	for _, line := range f.log(p, config) {
		n, err := strconv.Atoi(line.text)
		if err != nil || n < last {
			f.t.Fatalf("%s prints %q after %d", config.Metadata.Name, line.text, last)
		}
		last = n
	}
	return last
}

func (f *fixture) duoContinues(d duo) {
	f.t.Helper()
	for _, config := range d.configs {
		before := f.last(d.pod, config)
		f.eventually(config.Metadata.Name+" prints further numbers", func() bool { return f.last(d.pod, config) > before })
	}
}

func (d duo) checkpoint(dir string) *runtimeapi.CheckpointPodRequest {
	return &runtimeapi.CheckpointPodRequest{PodSandboxId: d.id, OutputPath: dir, ContainerIds: d.ids}
}

// restore restores the pod of a checkpoint with another name and UID.
func (f *fixture) restore(d duo, dir string) *runtimeapi.RestorePodRequest {
	config := proto.CloneOf(d.config)
	fresh := f.podConfig()
	config.Metadata, config.LogDirectory = fresh.Metadata, fresh.LogDirectory
	request := &runtimeapi.RestorePodRequest{CheckpointPath: dir, Config: config}
	for _, c := range d.configs {
		request.ContainerConfigs = append(request.ContainerConfigs, proto.CloneOf(c))
	}
	return request
}

// content returns the content of a directory's files.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		found[e.Name()] = string(data)
	}
	return found
}

// A pod is checkpointed consistently, keeps running and is removed. It is then restored as another
// pod, whose containers, once started, continue from the checkpoint.
func TestCheckpointPodAndRestore(t *testing.T) {
	for _, mode := range []runtimeapi.NamespaceMode{runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_POD} {
		t.Run("process IDs of the "+strings.ToLower(mode.String()), func(t *testing.T) {
			f := startCriu(t)
			d := f.runDuo(mode)
			dir := t.TempDir()
			f.no(f.Runtime.CheckpointPod(f.ctx, d.checkpoint(dir)))
			f.duoContinues(d)
			files := content(t, dir)
			for _, want := range []string{d.ids[0] + ".tar", d.ids[1] + ".tar", "pod.options", "pod.dump", "devshm-checkpoint.tar"} {
				if _, ok := files[want]; !ok {
					t.Errorf("the checkpoint has no %s", want)
				}
			}
			if len(files) != 5 || !slices.Contains(names(t, filepath.Join(dir, d.ids[0]+".tar")), "checkpoint/inventory.img") {
				t.Errorf("the checkpoint has %d files", len(files))
			}
			f.no(f.RemovePod(f.ctx, d.id))
			f.restoredDuo(d, dir)
			for name, was := range files {
				if content(t, dir)[name] != was {
					t.Errorf("the restore changed %s", name)
				}
			}
		})
	}
}

func (f *fixture) restoredDuo(d duo, dir string) {
	t := f.t
	request := f.restore(d, dir)
	response, err := f.Runtime.RestorePod(f.ctx, request)
	f.no(err)
	next := duo{pod: pod{response.PodSandboxId, request.Config}, configs: request.ContainerConfigs}
	for i, c := range response.RestoredContainers {
		if c.Name != next.configs[i].Metadata.Name || f.status(c.ContainerId).State != runtimeapi.ContainerState_CONTAINER_CREATED {
			t.Errorf("container %d is %q, %v", i, c.Name, f.status(c.ContainerId).State)
		}
		next.ids = append(next.ids, c.ContainerId)
	}
	// At the checkpoint, the writer had printed everything that the reader had read.
	written, read := f.last(next.pod, next.configs[0]), f.last(next.pod, next.configs[1])
	if read > written {
		t.Errorf("at the checkpoint the reader had printed %d, the writer %d", read, written)
	}
	for _, id := range next.ids {
		f.no(f.Runtime.StartContainer(f.ctx, id))
	}
	f.duoContinues(next)
	for i, line := range f.log(next.pod, next.configs[0]) {
		if line.text != strconv.Itoa(i) {
			t.Fatalf("line %d of the restored writer is %q", i, line.text)
		}
	}
	for i, want := range []int32{7, 8} {
		f.no(f.Runtime.StopContainer(f.ctx, next.ids[i], 20))
		if got := f.status(next.ids[i]); got.ExitCode != want {
			t.Errorf("%s ended with %d, want %d", next.configs[i].Metadata.Name, got.ExitCode, want)
		}
	}
}

// Invalid requests are rejected with the reason, write nothing and stop no container.
func TestCheckpointPodRefuses(t *testing.T) {
	f := startCriu(t)
	d := f.runDuo(runtimeapi.NamespaceMode_CONTAINER)
	other := f.runPod(f.podConfig())
	stranger := f.start(other, f.containerConfig(busyboxImage, "sleep", "1000"))
	created := f.create(d.pod, f.containerConfig(busyboxImage, "true"))
	full := t.TempDir()
	f.no(os.WriteFile(filepath.Join(full, "mine"), nil, 0o600))
	for name, tc := range map[string]struct {
		change func(*runtimeapi.CheckpointPodRequest)
		code   codes.Code
		says   string
	}{
		"unknown pod":                     {func(r *runtimeapi.CheckpointPodRequest) { r.PodSandboxId = "none" }, codes.NotFound, "none"},
		"no containers":                   {func(r *runtimeapi.CheckpointPodRequest) { r.ContainerIds = nil }, codes.InvalidArgument, "no containers"},
		"a container twice":               {func(r *runtimeapi.CheckpointPodRequest) { r.ContainerIds = append(r.ContainerIds, d.ids[0]) }, codes.InvalidArgument, `both called "writer"`},
		"an unknown container":            {func(r *runtimeapi.CheckpointPodRequest) { r.ContainerIds = []string{"none"} }, codes.NotFound, "none"},
		"a container of another pod":      {func(r *runtimeapi.CheckpointPodRequest) { r.ContainerIds = []string{stranger} }, codes.InvalidArgument, other.id},
		"a container that is not started": {func(r *runtimeapi.CheckpointPodRequest) { r.ContainerIds = append(r.ContainerIds, created) }, codes.FailedPrecondition, "created"},
		"an option":                       {func(r *runtimeapi.CheckpointPodRequest) { r.Options = map[string]string{"fast": "yes"} }, codes.InvalidArgument, `"fast"`},
		"a relative path":                 {func(r *runtimeapi.CheckpointPodRequest) { r.OutputPath = "x" }, codes.InvalidArgument, "not absolute"},
		"no directory":                    {func(r *runtimeapi.CheckpointPodRequest) { r.OutputPath = full + "/none" }, codes.InvalidArgument, "/none"},
		"a full directory":                {func(r *runtimeapi.CheckpointPodRequest) { r.OutputPath = full }, codes.InvalidArgument, `"mine"`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			request := d.checkpoint(dir)
			tc.change(request)
			if err := f.Runtime.CheckpointPod(f.ctx, request); status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v, want %s with %q", err, tc.code, tc.says)
			}
			only(t, dir)
			only(t, full, "mine")
		})
	}
	f.duoContinues(d)
}

// A request that does not fit the checkpoint is rejected with the reason, and leaves nothing of the
// pod.
func TestRestorePodRefuses(t *testing.T) {
	f := startCriu(t)
	d := f.runDuo(runtimeapi.NamespaceMode_CONTAINER)
	dir := t.TempDir()
	f.no(f.Runtime.CheckpointPod(f.ctx, d.checkpoint(dir)))
	unfinished := t.TempDir()
	for name, data := range content(t, dir) {
		if name != "pod.options" {
			f.no(os.WriteFile(filepath.Join(unfinished, name), []byte(data), 0o600))
		}
	}
	damaged := t.TempDir()
	for name, data := range content(t, dir) {
		if name == d.ids[1]+".tar" {
			data = data[:len(data)/2]
		}
		f.no(os.WriteFile(filepath.Join(damaged, name), []byte(data), 0o600))
	}
	f.pull(toolsImage)
	type change = func(*runtimeapi.RestorePodRequest)
	for name, tc := range map[string]struct {
		change change
		code   codes.Code
		says   string
	}{
		"a relative path":          {func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath = "x" }, codes.InvalidArgument, "not absolute"},
		"no checkpoint":            {func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath = "/none" }, codes.NotFound, "/none"},
		"an unfinished checkpoint": {func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath = unfinished }, codes.InvalidArgument, "unfinished one"},
		"a damaged archive":        {func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath = damaged }, codes.InvalidArgument, "damaged"},
		"unknown handler":          {func(r *runtimeapi.RestorePodRequest) { r.RuntimeHandler = "none" }, codes.NotFound, `"none"`},
		"an option":                {func(r *runtimeapi.RestorePodRequest) { r.Options = map[string]string{"fast": ""} }, codes.InvalidArgument, `"fast"`},
		"no configs":               {func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs = nil }, codes.InvalidArgument, "no container configs"},
		"one container too few":    {func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs = r.ContainerConfigs[:1] }, codes.InvalidArgument, `"reader"`},
		"another name":             {func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[1].Metadata.Name = "other" }, codes.InvalidArgument, `"other"`},
		"a name in use":            {func(r *runtimeapi.RestorePodRequest) { r.Config.Metadata = d.config.Metadata }, codes.AlreadyExists, d.id},
		"another command":          {func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[1].Command = []string{"true"} }, codes.FailedPrecondition, "command"},
		"another image":            {func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[1].Image.Image = toolsImage }, codes.FailedPrecondition, "it is of image"},
		"an absent image":          {func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[1].Image.Image = "registry.test/mica/gone" }, codes.NotFound, "gone"},
		"another environment": {func(r *runtimeapi.RestorePodRequest) {
			r.ContainerConfigs[1].Envs = []*runtimeapi.KeyValue{{Key: "MODE", Value: []byte("fast")}}
		}, codes.FailedPrecondition, `"MODE"`},
		"another mount": {func(r *runtimeapi.RestorePodRequest) {
			r.ContainerConfigs[1].Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: dir}}
		}, codes.FailedPrecondition, `"/data"`},
		"the node's network": {func(r *runtimeapi.RestorePodRequest) {
			r.Config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}}
		}, codes.FailedPrecondition, "network namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			request := f.restore(d, dir)
			tc.change(request)
			_, err := f.Runtime.RestorePod(f.ctx, request)
			if status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v, want %s with %q", err, tc.code, tc.says)
			}
			f.onlyPod(d.id)
		})
	}
	t.Run("a deadline", func(t *testing.T) {
		f.no(f.StopDaemon())
		f.Env = []string{failpoint.Variable + "=restore-pod-made=sleep:2s"} // longer than the deadline
		_, err := f.StartDaemon(f.ctx)
		f.no(err)
		short, cancel := context.WithTimeout(f.ctx, time.Second)
		defer cancel()
		if _, err := f.Runtime.RestorePod(short, f.restore(d, dir)); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("restore past its deadline: %v", err)
		}
		// The client gets the error before the server has finished.
		f.eventually("nothing is left of the restore", func() bool {
			pods, err := f.Runtime.ListPodSandbox(f.ctx, nil)
			f.no(err)
			return len(pods) == 1
		})
	})
	f.duoContinues(d)
}

// onlyPod waits until only the pod and its two containers exist: a new daemon removes incomplete
// pods while it serves.
func (f *fixture) onlyPod(id string) {
	f.t.Helper()
	f.eventually("only the first pod exists, with two containers", func() bool {
		pods, err := f.Runtime.ListPodSandbox(f.ctx, nil)
		f.no(err)
		containers, err := f.Runtime.ListContainers(f.ctx, nil)
		f.no(err)
		return len(pods) == 1 && pods[0].Id == id && len(containers) == 2
	})
}

// A hanging CRIU stops no container of the pod for longer than the caller's deadline.
func TestCheckpointPodTimeout(t *testing.T) {
	needRuntimeWithCriu(t)
	hangs := fakeCriu(t, `case $1 in --version) echo "Version: 4.1" ;; check) ;; *) while kill -0 $PPID; do sleep 0.1; done ;; esac`)
	f := startOn(t, func(o *node.Options) { o.Criu = hangs })
	d := f.runDuo(runtimeapi.NamespaceMode_CONTAINER)
	dir := t.TempDir()
	short, cancel := context.WithTimeout(f.ctx, time.Second)
	defer cancel()
	if err := f.Runtime.CheckpointPod(short, d.checkpoint(dir)); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("checkpoint with a hanging CRIU: %v", err)
	}
	f.duoContinues(d)
	f.eventually("the directory is empty", func() bool { return len(content(t, dir)) == 0 })
}

// The daemon dies during the checkpoint or the restore of a pod. The pod continues to run, the
// directory is empty, and nothing of the new pod exists.
func TestPodCheckpointSurvivesKills(t *testing.T) {
	f := startCriu(t)
	d := f.runDuo(runtimeapi.NamespaceMode_CONTAINER)
	dir := t.TempDir()
	for _, point := range []string{"checkpoint-frozen", "checkpoint-pod-captured", "checkpoint-written"} {
		f.restartWith(point)
		if err := f.Runtime.CheckpointPod(f.ctx, d.checkpoint(dir)); err == nil || !f.died() {
			t.Fatalf("the daemon survived fail point %s: %v", point, err)
		}
		f.no(f.Kill())
		f.restartWith("")
		f.duoContinues(d)
		only(t, dir)
	}
	f.no(f.Runtime.CheckpointPod(f.ctx, d.checkpoint(dir)))
	for _, point := range []string{"restore-pod-made", "restore-unpacked", "restore-pod-created"} {
		f.restartWith(point)
		if _, err := f.Runtime.RestorePod(f.ctx, f.restore(d, dir)); err == nil || !f.died() {
			t.Fatalf("the daemon survived fail point %s: %v", point, err)
		}
		f.no(f.Kill())
		f.restartWith("")
		f.onlyPod(d.id)
		f.duoContinues(d)
	}
	f.restoredDuo(d, dir)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		t.Error("the checkpoint was removed")
	}
}
