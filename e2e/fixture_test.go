package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/node"
	"github.com/micarun/mica/internal/patience"
	"github.com/micarun/mica/internal/testregistry"
	"github.com/micarun/mica/internal/testspec"
)

// The tests' images. registry.test is only a name: the node's mirror serves the images.
const (
	busyboxImage = "registry.test/mica/busybox:latest"
	toolsImage   = "registry.test/mica/tools:latest"
	nginxImage   = "registry.test/mica/nginx:latest"
)

// cleanWait bounds the wait for resources that end on their own: a link whose namespace was closed,
// the connection of a finished stream.
const cleanWait = 30 * time.Second

// fixture is the node and the registry of one test.
type fixture struct {
	*node.Node
	t        *testing.T
	ctx      context.Context // the test's
	registry *testregistry.Registry
	addr     string // the registry's
	baseline node.Census
	serial   atomic.Int32
	ports    []int  // unused ports of the slot
	logs     string // directory of container logs
}

// start starts a node for the test. At the end of the test, it removes pods and images by CRI and
// checks that nothing is left.
func start(t *testing.T) *fixture {
	t.Helper()
	return startOn(t, func(*node.Options) {})
}

// startWith is start with a registry that asks for auth.
func startWith(t *testing.T, auth testregistry.Auth) *fixture {
	t.Helper()
	return startNode(t, auth, func(*node.Options) {})
}

// startOn is startWith with other node options.
func startOn(t *testing.T, change func(*node.Options)) *fixture {
	t.Helper()
	return startNode(t, testregistry.Auth{}, change)
}

func startNode(t *testing.T, auth testregistry.Auth, change func(*node.Options)) *fixture {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces, mounts, cgroups")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience.Of(10*time.Minute))
	t.Cleanup(cancel)
	slot, err := node.TakeSlot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slot.Release() })
	f := &fixture{t: t, ctx: ctx, registry: testregistry.New(testregistry.Options{Dir: filepath.Join(shared.images, "registry"), Auth: auth}), logs: filepath.Join(t.TempDir(), "logs"), ports: slot.Ports[:]}
	server, err := f.registry.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	f.addr = server.Addr
	options := node.Options{
		Bin: shared.bin, Name: slot.Name, State: slot.State, Data: slot.Data, Subnet: slot.Subnet, Metrics: slot.Metrics, Mirror: server.Addr,
		OCIRuntime: os.Getenv(runtimeEnv), CgroupDriver: os.Getenv("MICA_E2E_CGROUP_DRIVER"),
		Criu: shared.criu,
	}
	change(&options)
	f.Node, err = node.Start(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.finish)
	f.baseline, err = f.Settle(ctx)
	f.no(err)
	// Libraries open these once, at their first use.
	f.baseline["daemon fd"] = append(f.baseline["daemon fd"], "/", "/sys/fs/cgroup")
	return f
}

// StartDaemon starts the daemon and waits until it has recovered all pods and containers. Until
// then it serves their recorded state; tests of that time use the node's own StartDaemon. The
// duration is the time until the first answer.
func (f *fixture) StartDaemon(ctx context.Context) (time.Duration, error) {
	took, err := f.Node.StartDaemon(ctx)
	if err != nil {
		return took, err
	}
	return took, f.awaitRecovered(ctx)
}

func (f *fixture) awaitRecovered(ctx context.Context) error {
	deadline := time.Now().Add(patience.Of(cleanWait))
	for {
		status, err := f.Runtime.Status(ctx, false)
		if err != nil {
			return err
		}
		ready := status.GetStatus().GetConditions()[0]
		if ready.GetReason() != "Recovering" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not recovered: %s", ready.GetMessage())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// finish checks and ends the node.
func (f *fixture) finish() {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(f.ctx), patience.Of(3*time.Minute))
	defer cancel()
	if f.Pid() != 0 {
		f.checkClean(ctx)
	}
	if strings.Contains(f.LogTail(5000), "WARNING: DATA RACE") {
		f.t.Error("the daemon has a data race")
	}
	log := f.LogTail(60)
	if err := f.Remove(ctx); err != nil {
		f.t.Errorf("remove node: %v", err)
	}
	if f.t.Failed() {
		f.t.Logf("daemon log:\n%s", log)
	}
}

// checkClean removes all pods and images and fails the test if anything is left.
func (f *fixture) checkClean(ctx context.Context) {
	f.t.Helper()
	if err := f.awaitCheck(ctx); err != nil {
		f.t.Errorf("check the node with its pods: %v", err)
	}
	if err := f.Empty(ctx); err != nil {
		f.t.Errorf("remove pods: %v", err)
	}
	if err := f.RemoveImages(ctx); err != nil {
		f.t.Errorf("remove images: %v", err)
	}
	leaks, err := f.AwaitClean(ctx, f.baseline, patience.Of(cleanWait))
	if err != nil {
		f.t.Errorf("look for leaks: %v", err)
	}
	for _, leak := range leaks {
		f.t.Errorf("leak: %s", leak)
	}
	if slices.ContainsFunc(leaks, func(leak string) bool { return strings.HasPrefix(leak, "goroutine") }) {
		// The goroutine dump in the daemon's log shows which one.
		stacks, err := f.DumpGoroutines()
		f.no(err)
		f.t.Logf("goroutines:\n%s", stacks)
		return
	}
	if _, err := f.Mica(ctx, "check"); err != nil {
		f.t.Errorf("check the empty node: %v", err)
	}
}

// awaitCheck waits until the node's check finds nothing: resources may still be in the process of
// being released.
func (f *fixture) awaitCheck(ctx context.Context) error {
	deadline := time.Now().Add(patience.Of(cleanWait))
	for {
		_, err := f.Mica(ctx, "check")
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// no ends the test if err is not nil.
func (f *fixture) no(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// pull pulls the image and returns its ID.
func (f *fixture) pull(image string) string {
	f.t.Helper()
	id, err := f.Images.PullImage(f.ctx, &runtimeapi.ImageSpec{Image: image}, nil, nil)
	if err != nil {
		f.t.Fatalf("pull %s: %v", image, err)
	}
	return id
}

// podConfig returns the config of a new pod with a unique name.
func (f *fixture) podConfig() *runtimeapi.PodSandboxConfig {
	name := fmt.Sprintf("pod%d", f.serial.Add(1))
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: "uid-" + name, Namespace: "test"},
		Hostname:     name,
		LogDirectory: filepath.Join(f.logs, name),
		Labels:       map[string]string{"app": name},
		Linux:        &runtimeapi.LinuxPodSandboxConfig{},
	}
}

// pod is a pod with its config.
type pod struct {
	id     string
	config *runtimeapi.PodSandboxConfig
}

func (f *fixture) runPod(config *runtimeapi.PodSandboxConfig) pod {
	f.t.Helper()
	id, err := f.Runtime.RunPodSandbox(f.ctx, config, "")
	if err != nil {
		f.t.Fatalf("run pod %s: %v", config.Metadata.Name, err)
	}
	return pod{id, config}
}

// containerConfig returns the config of a container of image that runs command.
func (f *fixture) containerConfig(image string, command ...string) *runtimeapi.ContainerConfig {
	name := fmt.Sprintf("container%d", f.serial.Add(1))
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: image},
		Command:  command,
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			// The kubelet sends this for pods without a shared PID namespace. Without options, the
			// container would get the pod's namespace.
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
}

func (f *fixture) create(p pod, config *runtimeapi.ContainerConfig) string {
	f.t.Helper()
	f.pull(config.Image.Image)
	id, err := f.Runtime.CreateContainer(f.ctx, p.id, config, p.config)
	if err != nil {
		f.t.Fatalf("create container %s: %v", config.Metadata.Name, err)
	}
	f.checkSpec(id)
	return id
}

// checkSpec validates the specification that the OCI runtime was given for a container.
func (f *fixture) checkSpec(container string) {
	f.t.Helper()
	data, err := os.ReadFile(filepath.Join(f.State, "containers", container, "config.json"))
	f.no(err)
	var s specs.Spec
	f.no(json.Unmarshal(data, &s))
	if err := testspec.Check(&s); err != nil {
		f.t.Errorf("specification of container %s: %v", container, err)
	}
}

func (f *fixture) start(p pod, config *runtimeapi.ContainerConfig) string {
	f.t.Helper()
	id := f.create(p, config)
	if err := f.Runtime.StartContainer(f.ctx, id); err != nil {
		f.t.Fatalf("start container %s: %v", config.Metadata.Name, err)
	}
	return id
}

// output runs a container, waits for its exit, and returns the text of its log.
func (f *fixture) output(p pod, config *runtimeapi.ContainerConfig) string {
	f.t.Helper()
	f.await(f.start(p, config))
	return text(f.log(p, config))
}

func (f *fixture) status(id string) *runtimeapi.ContainerStatus {
	f.t.Helper()
	response, err := f.Runtime.ContainerStatus(f.ctx, id, false)
	if err != nil {
		f.t.Fatalf("status of container %s: %v", id, err)
	}
	return response.Status
}

// await waits for the container's exit.
func (f *fixture) await(id string) *runtimeapi.ContainerStatus {
	f.t.Helper()
	var status *runtimeapi.ContainerStatus
	f.eventually("the container exits", func() bool {
		status = f.status(id)
		return status.State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return status
}

// eventually waits until the condition is true. It ends the test after a minute, or longer on a
// slow machine.
func (f *fixture) eventually(what string, condition func() bool) {
	f.t.Helper()
	wait := patience.Of(time.Minute)
	for deadline := time.Now().Add(wait); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if condition() {
			return
		}
	}
	f.t.Fatalf("not within %s: %s", wait, what)
}

// exec runs a command in the container and returns what it printed.
func (f *fixture) exec(id string, command ...string) string {
	f.t.Helper()
	stdout, stderr, err := f.Runtime.ExecSync(f.ctx, id, command, patience.Of(time.Minute))
	if err != nil {
		f.t.Fatalf("exec %s: %v: %s%s", strings.Join(command, " "), err, stdout, stderr)
	}
	return string(stdout)
}

// ip returns the pod's address.
func (f *fixture) ip(p pod) string {
	f.t.Helper()
	response, err := f.Runtime.PodSandboxStatus(f.ctx, p.id, false)
	if err != nil {
		f.t.Fatalf("status of pod %s: %v", p.id, err)
	}
	return response.Status.GetNetwork().GetIp()
}

// logLine is one line of a log file in the CRI format.
type logLine struct {
	at     time.Time
	stream string
	full   bool
	text   string
}

// log reads a container's log file, and fails the test if a line is not in the CRI format.
func (f *fixture) log(p pod, config *runtimeapi.ContainerConfig) []logLine {
	f.t.Helper()
	return f.logFile(filepath.Join(p.config.LogDirectory, config.LogPath))
}

func (f *fixture) logFile(path string) []logLine {
	f.t.Helper()
	var data []byte
	// A reader may see the first part of a write that crosses a page's end.
	f.eventually(path+" ends with a whole line", func() bool {
		var err error
		data, err = os.ReadFile(path)
		f.no(err)
		return len(data) == 0 || data[len(data)-1] == '\n'
	})
	var lines []logLine
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(fields) != 4 || !strings.HasSuffix(line, "\n") {
			f.t.Fatalf("log line %q: not time, stream, tag and text", line)
		}
		at, err := time.Parse(time.RFC3339Nano, fields[0])
		if err != nil || fields[1] != "stdout" && fields[1] != "stderr" || fields[2] != "F" && fields[2] != "P" {
			f.t.Fatalf("log line %q: not in the CRI format", line)
		}
		lines = append(lines, logLine{at, fields[1], fields[2] == "F", fields[3]})
	}
	return lines
}

// text joins the pieces of log lines.
func text(lines []logLine) string {
	var b strings.Builder
	for _, line := range lines {
		b.WriteString(line.text)
		if line.full {
			b.WriteByte('\n')
		}
	}
	return b.String()
}
