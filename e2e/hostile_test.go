package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/hostile"
	"github.com/micarun/mica/e2e/node"
	"github.com/micarun/mica/internal/patience"
	"github.com/micarun/mica/internal/testregistry"
)

// No hostile input of 10 MB may exceed these limits, in daemon or keeper, from the pull to the load
// at a restart. SPECIFICATION.md guarantees them.
const (
	hostileMemory    = 150 << 20
	hostileProcessor = 10 * time.Second
)

// hostileEnv set to "all" runs every case; `make hostile` sets it. Any other text is a regular
// expression for the cases to run.
const hostileEnv = "MICA_E2E_HOSTILE"

// hostileWait bounds a call that does not return.
const hostileWait = 3 * time.Minute

// limitNamed matches an error that names a limit.
var limitNamed = regexp.MustCompile(`(?i)\b(more|larger|longer|deeper|wider|above|over|exceed\w*|most|limit\w*|too (many|large|long|deep|big|small|short))\b`)

// judge runs hostile inputs on one node and measures them.
type judge struct {
	*fixture
	prefix string // of the image names
	pod    pod
	table  strings.Builder
}

// cost is what a step cost the daemon and the keeper.
type cost struct {
	memory, keeperMemory int64
	processor            time.Duration
}

func (c cost) max(o cost) cost {
	return cost{max(c.memory, o.memory), max(c.keeperMemory, o.keeperMemory), c.processor + o.processor}
}

func (c cost) String() string {
	return fmt.Sprintf("%4d MB %4d MB %6.2f s", c.memory>>20, c.keeperMemory>>20, c.processor.Seconds())
}

// TestHostileImages pulls images that each attack one limit, runs them, and restarts the daemon
// with them. Each is rejected with an error that names the limit, or works, within the bounds for
// memory and processor time.
func TestHostileImages(t *testing.T) {
	j := startJudge(t)
	base := j.base()
	registry := testregistry.New(testregistry.Options{Dir: filepath.Join(t.TempDir(), "registry")})
	j.prefix = j.serve(registry)
	for _, layer := range base.Layers {
		_, err := registry.PutBlob(j.download("/v2/mica/busybox/blobs/" + layer.Digest.String()))
		j.no(err)
	}
	for _, image := range hostile.Images() {
		if !hostileWanted(image.Name, image.Quick) {
			continue
		}
		t.Run(image.Name, func(t *testing.T) {
			if err := image.Put(registry, base); err != nil {
				t.Fatal(err)
			}
			j.image(t, image)
		})
	}
	j.works()
}

// TestHostileArchives creates containers from checkpoint archives that each attack one limit.
func TestHostileArchives(t *testing.T) {
	j := startJudge(t)
	j.needCriu()
	for _, archive := range hostile.Archives() {
		if !hostileWanted(archive.Name, archive.Quick) {
			continue
		}
		t.Run(archive.Name, func(t *testing.T) {
			data, err := archive.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "checkpoint.tar")
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			// An archive within the limits is rejected because it has no CRIU images.
			image := hostile.Image{Name: archive.Name, Says: "CRIU images|is missing|damaged"}
			t.Cleanup(func() { j.tidy(t, path) })
			j.within(t, j.run(t, image, j.containerConfig(path)))
		})
	}
	j.works()
}

func hostileWanted(name string, quick bool) bool {
	switch pattern := os.Getenv(hostileEnv); pattern {
	case "":
		return quick
	case "all":
		return true
	default:
		return regexp.MustCompile(pattern).MatchString(name)
	}
}

func startJudge(t *testing.T) *judge {
	t.Helper()
	j := &judge{fixture: startOn(t, func(o *node.Options) { o.Data = journaled(t, o.Data+".disk") })}
	// The steps have limits of their own; all of them together may take longer than another test.
	ctx, cancel := context.WithCancel(context.WithoutCancel(j.ctx))
	t.Cleanup(cancel)
	j.ctx = ctx
	j.pull(busyboxImage)
	j.pod = j.runPod(j.podConfig())
	t.Cleanup(func() {
		t.Logf("%-32s %-10s %7s %7s %8s\n%s", "case", "step", "daemon", "keeper", "processor", &j.table)
	})
	return j
}

// journaled mounts an ext4 with a journal, as hosts have it, and returns a directory on it. Without a
// journal, ext4 passes over every inode that was deleted in the last minutes before it makes a new one: files that
// follow a case that deleted many cost up to half a millisecond each.
func journaled(t *testing.T, dir string) string {
	t.Helper()
	disk := dir + ".img"
	_ = unix.Unmount(dir, unix.MNT_DETACH) // of a killed test
	for _, err := range []error{os.MkdirAll(dir, 0o711), os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 16<<30)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, command := range [][]string{{"mkfs.ext4", "-q", "-F", disk}, {"mount", "-o", "loop", disk, dir}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", command, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
		for _, path := range []string{dir, disk} {
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
	})
	return filepath.Join(dir, "data")
}

// serve starts a registry for images and returns the prefix of their names.
func (j *judge) serve(registry *testregistry.Registry) string {
	server, err := registry.Start("127.0.0.1:0")
	j.no(err)
	j.t.Cleanup(func() { _ = server.Close() })
	hosts := filepath.Join(j.Data, "certs.d", server.Addr)
	j.no(os.MkdirAll(hosts, 0o755))
	j.no(os.WriteFile(filepath.Join(hosts, "hosts.toml"), fmt.Appendf(nil, "server = %q\n", "http://"+server.Addr), 0o644))
	return server.Addr + "/" + hostile.Repository + ":"
}

// base is the image below the hostile layers.
func (j *judge) base() hostile.Base {
	var manifest ocispec.Manifest
	j.no(json.Unmarshal(j.download("/v2/mica/busybox/manifests/latest"), &manifest))
	var config ocispec.Image
	j.no(json.Unmarshal(j.download("/v2/mica/busybox/blobs/"+manifest.Config.Digest.String()), &config))
	return hostile.Base{Layers: manifest.Layers, DiffIDs: config.RootFS.DiffIDs}
}

// download reads from the registry of the test images.
func (j *judge) download(path string) []byte {
	response, err := http.Get("http://" + j.addr + path)
	j.no(err)
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	j.no(err)
	return data
}

// image is one case: pull, create and start, restart, removal.
func (j *judge) image(t *testing.T, image hostile.Image) {
	name := j.prefix + image.Name
	t.Cleanup(func() { j.tidy(t, name) })
	total, err := j.step(t, step{image.Name, "pull", image.Says}, func(ctx context.Context) error {
		_, err := j.Images.PullImage(ctx, &runtimeapi.ImageSpec{Image: name}, nil, nil)
		return err
	})
	if err != nil {
		j.within(t, total)
		return
	}
	config := j.containerConfig(name, "true")
	config.Command = nil // the image's name
	if image.User != "" {
		config.Linux.SecurityContext.RunAsUsername = image.User
	}
	total = total.max(j.run(t, image, config))
	if image.Volume {
		config := j.containerConfig(busyboxImage, "ls", "-U", "/volume")
		config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/volume", Readonly: true, Image: &runtimeapi.ImageSpec{Image: name}}}
		total = total.max(j.run(t, image, config))
	}
	total = total.max(j.restart(t, image.Name))
	j.within(t, total)
}

// run creates and starts a container; both may be rejected.
func (j *judge) run(t *testing.T, image hostile.Image, config *runtimeapi.ContainerConfig) cost {
	var id string
	created, err := j.step(t, step{image.Name, "create", image.Says}, func(ctx context.Context) (err error) {
		id, err = j.Runtime.CreateContainer(ctx, j.pod.id, config, j.pod.config)
		return err
	})
	if err != nil {
		return created
	}
	started, _ := j.step(t, step{image.Name, "start", image.Says}, func(ctx context.Context) error { return j.Runtime.StartContainer(ctx, id) })
	return created.max(started)
}

// restart measures the start of a daemon with the images of this case.
func (j *judge) restart(t *testing.T, name string) cost {
	t.Helper()
	if err := j.StopDaemon(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if _, err := j.StartDaemon(j.ctx); err != nil {
		t.Fatal(err)
	}
	c := j.measure(t, 0)
	j.row(name, "restart", c, time.Since(begin), nil)
	return c
}

// step is one call of a case. says matches errors that are allowed although they name no limit.
type step struct{ name, what, says string }

// step measures one call and checks that an error names the limit.
func (j *judge) step(t *testing.T, s step, call func(context.Context) error) (cost, error) {
	t.Helper()
	keeper, err := j.KeeperPid()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{j.Pid(), keeper} {
		if err := node.ResetPeakMemory(pid); err != nil {
			t.Fatal(err)
		}
	}
	before := j.processor(t)
	begin := time.Now()
	ctx, cancel := context.WithTimeout(j.ctx, patience.Of(hostileWait))
	defer cancel()
	err = call(ctx)
	c := j.measure(t, before)
	j.row(s.name, s.what, c, time.Since(begin), err)
	if err != nil {
		s.namesLimit(t, err)
	}
	return c, err
}

// namesLimit checks the error of a hostile input.
func (s step) namesLimit(t *testing.T, err error) {
	t.Helper()
	if len(err.Error()) > 8<<10 {
		t.Errorf("%s: the error has %d bytes", s.what, len(err.Error()))
	}
	if s.says != "" && regexp.MustCompile(s.says).MatchString(err.Error()) {
		return
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.OutOfRange, codes.ResourceExhausted, codes.FailedPrecondition, codes.Unimplemented:
	default:
		t.Errorf("%s: the error is of class %s: %.500v", s.what, status.Code(err), err)
	}
	if !limitNamed.MatchString(err.Error()) {
		t.Errorf("%s: the error names no limit: %.500v", s.what, err)
	}
}

// processor returns the processor time used by daemon and keeper.
func (j *judge) processor(t *testing.T) time.Duration {
	t.Helper()
	keeper, err := j.KeeperPid()
	if err != nil {
		t.Fatal(err)
	}
	var sum time.Duration
	for _, pid := range []int{j.Pid(), keeper} {
		used, err := node.ProcessorTime(pid)
		if err != nil {
			t.Fatal(err)
		}
		sum += used
	}
	return sum
}

func (j *judge) measure(t *testing.T, before time.Duration) cost {
	t.Helper()
	keeper, err := j.KeeperPid()
	if err != nil {
		t.Fatal(err)
	}
	var c cost
	if c.memory, err = node.PeakMemory(j.Pid()); err != nil {
		t.Fatal(err)
	}
	if c.keeperMemory, err = node.PeakMemory(keeper); err != nil {
		t.Fatal(err)
	}
	c.processor = j.processor(t) - before
	if before == 0 { // of the daemon since its start
		if c.processor, err = node.ProcessorTime(j.Pid()); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func (j *judge) row(name, what string, c cost, took time.Duration, err error) {
	fmt.Fprintf(&j.table, "%-32s %-10s %s %6.2f s %.300s\n", name, what, c, took.Seconds(), said(err))
}

// said formats an error for the table.
func said(err error) string {
	if err == nil {
		return "works"
	}
	return err.Error()
}

// within fails the test if the cost exceeds the bounds. They are for the daemon as it is shipped:
// with the race detector it takes many times the memory and the time.
func (j *judge) within(t *testing.T, c cost) {
	t.Helper()
	if os.Getenv(raceEnv) != "" {
		return
	}
	if c.memory > hostileMemory {
		t.Errorf("the daemon used %d MB, more than %d", c.memory>>20, hostileMemory>>20)
	}
	if c.keeperMemory > hostileMemory {
		t.Errorf("the keeper used %d MB, more than %d", c.keeperMemory>>20, hostileMemory>>20)
	}
	if c.processor > hostileProcessor {
		t.Errorf("%s of processor time, more than %s", c.processor, hostileProcessor)
	}
}

// tidy removes the objects of a case and checks the node.
func (j *judge) tidy(t *testing.T, image string) {
	if t.Failed() {
		// A cancelled call may still be running.
		_ = j.Kill()
		if _, err := j.StartDaemon(j.ctx); err != nil {
			t.Fatal(err)
		}
	}
	containers, err := j.Runtime.ListContainers(j.ctx, nil)
	if err != nil {
		t.Error(err)
	}
	for _, c := range containers {
		if err := j.Runtime.RemoveContainer(j.ctx, c.Id); err != nil {
			t.Error(err)
		}
	}
	if !filepath.IsAbs(image) {
		if err := j.Images.RemoveImage(j.ctx, &runtimeapi.ImageSpec{Image: image}); err != nil {
			t.Error(err)
		}
	}
	if out, err := j.Mica(j.ctx, "check"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// works checks that the node can still run containers.
func (j *judge) works() {
	j.pull(nginxImage)
	p := j.runPod(j.podConfig())
	if out := j.output(p, j.containerConfig(toolsImage, "echo", "fine")); out != "fine\n" {
		j.t.Errorf("a container printed %q", out)
	}
}
