package packaging

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/testregistry"
)

// ticker prints ten numbers a second, so that a gap in its log is visible.
const ticker = `package main
import ("fmt"; "time")
func main() { for n := 0; ; n++ { fmt.Println(n); time.Sleep(100 * time.Millisecond) } }
`

// registry serves the image app:v1, which contains the ticker, on the machine's loopback, and
// returns host and port.
func (m machine) registry() string {
	t := m.t
	t.Helper()
	source := filepath.Join(t.TempDir(), "ticker.go")
	if err := os.WriteFile(source, []byte(ticker), 0o644); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "ticker")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", program, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	r := testregistry.New(testregistry.Options{})
	putImage(t, r, program)
	type result struct {
		server *testregistry.Server
		err    error
	}
	started := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread exits with its namespace
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", m.leader))
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			_ = ns.Close()
		}
		if err != nil {
			started <- result{nil, err}
			return
		}
		server, err := r.Start("127.0.0.1:0")
		started <- result{server, err}
	}()
	got := <-started
	if got.err != nil {
		t.Fatal(got.err)
	}
	t.Cleanup(func() { _ = got.server.Close() })
	return got.server.Addr
}

func putImage(t *testing.T, r *testregistry.Registry, program string) {
	t.Helper()
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "ticker", Mode: 0o755, Size: int64(len(data)), ModTime: time.Unix(1, 0)}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	put := func(kind string, blob []byte) ocispec.Descriptor {
		d, err := r.PutBlob(blob)
		if err != nil {
			t.Fatal(err)
		}
		return ocispec.Descriptor{MediaType: kind, Digest: d, Size: int64(len(blob))}
	}
	encode := func(v any) []byte {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	image := ocispec.Image{
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config:   ocispec.ImageConfig{Cmd: []string{"/ticker"}},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer.Bytes())}},
	}
	manifest := encode(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: put(ocispec.MediaTypeImageConfig, encode(image)),
		Layers: []ocispec.Descriptor{put(ocispec.MediaTypeImageLayer, layer.Bytes())},
	})
	if _, err := r.PutManifest("app", "v1", ocispec.MediaTypeImageManifest, manifest); err != nil {
		t.Fatal(err)
	}
}

// runTicker runs the ticker in a pod on the machine's network.
func (m machine) runTicker(image string) {
	t := m.t
	t.Helper()
	conn, err := grpc.NewClient(fmt.Sprintf("unix:///proc/%d/root/run/mica/mica.sock", m.leader), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	images, service := runtimeapi.NewImageServiceClient(conn), runtimeapi.NewRuntimeServiceClient(conn)
	spec := &runtimeapi.ImageSpec{Image: image}
	if _, err := images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec}); err != nil {
		t.Fatal(err)
	}
	node := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER}
	pod := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "tick", Namespace: "test", Uid: "u"}, LogDirectory: "/var/log/pods",
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: node}},
	}
	sandbox, err := service.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
	if err != nil {
		t.Fatal(err)
	}
	container, err := service.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: sandbox.GetPodSandboxId(), SandboxConfig: pod,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "tick"}, Image: spec, LogPath: "tick.log",
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: node}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := service.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: container.GetContainerId()}); err != nil {
		t.Fatal(err)
	}
}

var tick = regexp.MustCompile(`(?m)^\S+ stdout F (\d+)\n`)

// ticks counts the lines of the log. They must be consecutive numbers: the container was never
// restarted, and no line is lost or duplicated.
func (m machine) ticks() int {
	m.t.Helper()
	all := tick.FindAllStringSubmatch(mayRead(m.file("/var/log/pods/tick.log")), -1)
	for i, line := range all {
		if line[1] != strconv.Itoa(i) {
			m.t.Fatalf("line %d of the container's log is %s", i, line[1])
		}
	}
	return len(all)
}

// continues waits for ten more lines.
func (m machine) continues(after string) {
	m.t.Helper()
	before := m.ticks()
	m.await("the container keeps running after "+after, func() bool { return m.ticks() >= before+10 })
}

// The package's life cycle on a machine with systemd, from the installation to the purge, while a
// container keeps running undisturbed.
func TestServices(t *testing.T) {
	parent := fmt.Sprintf("/mica-packaging-test-%d", os.Getpid())
	t.Cleanup(func() { // after the machine has ended
		dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + parent)
		for _, dir := range dirs {
			t.Errorf("cgroup %s is left", dir)
			awaitRemoval(t, dir)
		}
	})
	m := boot(t)
	drop := m.file("/etc/mica/conf.d/test.toml")
	text := fmt.Sprintf("[cgroups]\ndefault_parent = %q\n[nri]\nenable = false\n", parent)
	for file, content := range map[string]string{
		drop: text,
		// A short watchdog interval, so that a hanging daemon is detected during the test.
		m.file("/etc/systemd/system/micad.service.d/test.conf"): "[Service]\nWatchdogSec=6s\nTimeoutAbortSec=1s\n",
	} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	first, second := m.copy(deb(t, "1.0")), m.copy(deb(t, "1.1"))

	dpkg(m.run, "-i", first)
	m.await("both services run", func() bool {
		out, _ := m.try("systemctl", "is-active", "micad", "mica-keeper")
		return out == "active\nactive"
	})
	if got := m.property("micad", "StatusText"); got != "Serving CRI on /run/mica/mica.sock" {
		t.Errorf("status: %s", got)
	}
	m.runTicker(m.registry() + "/app:v1")
	m.continues("its start")
	keeper := m.property("mica-keeper", "MainPID")
	if group := m.run("cat", "/proc/"+keeper+"/cgroup"); !strings.Contains(group, "/mica-keeper.service\n") && !strings.HasSuffix(group, "/mica-keeper.service") {
		t.Errorf("the keeper is not in its unit: %s", group)
	}

	m.run("systemctl", "reload", "micad")
	m.await("the reload is over", func() bool { return m.property("micad", "SubState") == "running" })

	daemon := m.property("micad", "MainPID")
	m.run("kill", "-STOP", daemon)
	m.await("the watchdog replaces a hanging daemon", func() bool {
		pid := m.property("micad", "MainPID")
		return pid != daemon && pid != "0" && m.property("micad", "ActiveState") == "active"
	})
	m.continues("a watchdog's kill")

	daemon = m.property("micad", "MainPID")
	dpkg(m.run, "-i", second)
	if got := m.property("micad", "MainPID"); got == daemon {
		t.Error("the upgrade did not restart the daemon")
	}
	if got := m.property("mica-keeper", "MainPID"); got != keeper {
		t.Errorf("the upgrade replaced the keeper %s by %s", keeper, got)
	}
	m.await("the keeper runs the new program", func() bool { return m.run("readlink", "/proc/"+keeper+"/exe") == "/usr/bin/mica-keeper" })
	m.continues("an upgrade")

	m.run("kill", "-KILL", keeper)
	m.continues("a keeper's kill")
	m.await("the keeper's unit settles", func() bool {
		state := m.property("mica-keeper", "ActiveState")
		return state == "active" || state == "inactive"
	})
	if failed := m.run("systemctl", "--failed", "--no-legend", "--plain", "list-units", "mica*"); failed != "" {
		t.Errorf("failed: %s", failed)
	}

	out, err := m.try("dpkg", "--remove", "mica")
	if err != nil || !strings.Contains(out, "pods and keeper keep running") {
		t.Errorf("removal: %v\n%s", err, out)
	}
	m.continues("the removal of the package")
	dpkg(m.run, "-i", second)
	m.continues("another installation")

	m.run("systemctl", "stop", "micad")
	dpkg(m.run, "-i", first)
	if state := m.property("micad", "ActiveState"); state != "inactive" {
		t.Errorf("the installation of another version started a stopped daemon: %s", state)
	}
	m.run("systemctl", "start", "micad")
	m.continues("a change of versions without a daemon")

	m.run("mica", "stop", "--all")
	m.await("the services end and do not start again", func() bool {
		out, _ := m.try("systemctl", "is-active", "micad", "mica-keeper")
		return out == "inactive\ninactive"
	})
	m.run("systemctl", "start", "micad")
	m.run("dpkg", "--purge", "mica")
	m.await("no keeper is left", func() bool {
		_, err := m.try("pidof", "mica-keeper")
		return err != nil
	})
	if left := m.run("sh", "-c", "ls -A /var/lib/mica /run/mica 2>/dev/null || true"); strings.TrimSpace(strings.ReplaceAll(left, "/var/lib/mica:", "")) != "" {
		t.Errorf("the purge has left %s", left)
	}
}
