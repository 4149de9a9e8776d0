package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"

	"github.com/micarun/mica/internal/reaper"
	"github.com/micarun/mica/internal/testcgroup"
)

const busybox = "/bin/busybox"

// crunEnv selects crun. The test sets it when it runs its own binary in a mount namespace that crun
// accepts.
const crunEnv = "MICA_TEST_OCI_RUNTIME"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// container is a running container and its runtime.
type container struct {
	*Runtime
	id   string
	root string // the root filesystem
	work string // the runtime's WorkDir

	place *Direct // where execs are started directly; nil: the OCI runtime starts them
}

// directEnv selects direct starts of execs. The test sets it when it runs its own binary.
const directEnv = "MICA_TEST_OCI_DIRECT"

// Exec is the runtime's Exec, with a direct start if directEnv is set.
func (c container) Exec(ctx context.Context, a ExecArgs) (*ExecProcess, error) {
	if c.place == nil || a.ID != c.id || a.Process == nil || a.Process.Terminal {
		return c.Runtime.Exec(ctx, a)
	}
	process := *a.Process
	process.Capabilities, process.Env = &specs.LinuxCapabilities{}, append(slices.Clone(process.Env), "HOME=/")
	a.Process, a.Direct = &process, c.place
	p, err := c.Runtime.Exec(ctx, a)
	if err == nil && p.indirect != nil {
		err = fmt.Errorf("not started directly: %w", p.indirect)
	}
	return p, err
}

// newContainer runs a container that sleeps. The end of the test removes it.
func newContainer(t testing.TB) container {
	t.Helper()
	return newContainerOf(t, func(*specs.Spec) {})
}

// newContainerOf is newContainer with a specification that change has changed.
func newContainerOf(t testing.TB, change func(*specs.Spec)) container {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	path := os.Getenv(crunEnv)
	if path == "" {
		path = "runc"
	}
	if _, err := exec.LookPath(path); err != nil {
		t.Skip(err)
	}
	r, err := reaper.New(reaper.Options{Grace: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // root of a user namespace goes through them
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	c := container{
		id: "mica-ocitest-" + strconv.FormatUint(rand.Uint64(), 36), root: filepath.Join(dir, "bundle/rootfs"),
		// A socket in this directory has a path too long for a socket address.
		work: filepath.Join(dir, strings.Repeat("long", 30)),
	}
	options := Options{WorkDir: c.work, Reaper: r}
	if os.Getenv(directEnv) != "" {
		options.Helper = buildHelper(t)
	}
	c.Runtime = New(Handler{Path: path, Root: filepath.Join(dir, "state")}, options)
	var spec specs.Spec
	c.bundle(t, filepath.Dir(c.root), func(s *specs.Spec) {
		change(s)
		spec = *s
	})
	args := append(c.Args(), "run", "--detach", "--bundle", filepath.Dir(c.root), c.id)
	cmd := exec.Command(args[0], args[1:]...)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	release, err := r.Start(cmd)
	if err == nil {
		err = cmd.Wait()
		release()
	}
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		t.Fatalf("run container: %v: %s", err, text)
	}
	t.Cleanup(func() {
		if _, err := c.run(context.Background(), nil, "delete", "--force", c.id); err != nil {
			t.Error(err)
		}
	})
	if os.Getenv(directEnv) != "" {
		c.place = c.placeOf(t, &spec)
	}
	return c
}

func (c container) bundle(t testing.TB, dir string, change func(*specs.Spec)) {
	t.Helper()
	for _, d := range []string{"bin", "proc", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(c.root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(busybox)
	if err != nil {
		t.Skip(err)
	}
	if err := os.WriteFile(filepath.Join(c.root, "bin/busybox"), text, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"sh", "sleep", "cat", "yes", "head", "setsid", "stty", "true", "id", "seq", "kill", "wc", "dd"} {
		if err := os.Symlink("busybox", filepath.Join(c.root, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	s := probeSpec(dir, c.id, ProbeArgs{Binary: busybox})
	s.Process.Args = []string{"/bin/sleep", "100000"}
	s.Process.Env = []string{"PATH=/bin"}
	s.Mounts = append(s.Mounts[:2], specs.Mount{
		Destination: "/dev/pts", Type: "devpts", Source: "devpts",
		Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"},
	})
	change(s)
	config, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
}

func process(args ...string) *specs.Process {
	return &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}}
}

func shell(script string) *specs.Process { return process("sh", "-c", script) }

// do runs a process to its end.
func (c container) do(t testing.TB, a ExecArgs) (int, error) {
	t.Helper()
	a.ID = c.id
	p, err := c.Exec(t.Context(), a)
	if err != nil {
		return 0, err
	}
	return p.Wait(t.Context())
}

// processes returns how many processes in the container have arg in their command line.
func (c container) processes(t testing.TB, arg string) int {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, file := range lines {
		text, err := os.ReadFile(file)
		if err != nil || !slices.Contains(strings.Split(string(text), "\x00"), arg) {
			continue
		}
		// Another run of these tests may use the same commands.
		cgroups, err := os.ReadFile(filepath.Join(filepath.Dir(file), "cgroup"))
		if err == nil && strings.Contains(string(cgroups), c.id) {
			n++
		}
	}
	return n
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestExec(t *testing.T) {
	c := newContainer(t)
	if err := os.MkdirAll(filepath.Join(c.work, "exec-left-by-a-crash"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, script, stdin string
		code                int
		out, err            string
	}{
		{"output", "echo out; echo err >&2", "", 0, "out\n", "err\n"},
		{"exit code", "exit 42", "", 42, "", ""},
		{"signal", "kill -9 $$", "", 137, "", ""},
		{"stdin", "cat; echo end", "hello\n", 0, "hello\nend\n", ""},
		{"stdin not read", "exit 3", strings.Repeat("x", 1<<20), 3, "", ""},
		{"stdin read in part", "head -c 5", strings.Repeat("x", 1<<20), 0, "xxxxx", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code, err := c.do(t, ExecArgs{
				Process: shell(tc.script), Stdin: strings.NewReader(tc.stdin), Stdout: &stdout, Stderr: &stderr,
			})
			if err != nil || code != tc.code || stdout.String() != tc.out || stderr.String() != tc.err {
				t.Errorf("exec = %d, %v, stdout %q, stderr %q", code, err, stdout.String(), stderr.String())
			}
		})
	}
	if left, err := os.ReadDir(c.work); err != nil || len(left) > 0 {
		t.Errorf("left in the work directory: %v, %v", left, err)
	}
}

// TestExecOutputIsComplete reads more output than a pipe holds, slowly, and at the end as slowly as
// on a busy machine.
func TestExecOutputIsComplete(t *testing.T) {
	c := newContainer(t)
	const lines = 100000
	for _, terminal := range []bool{false, true} {
		size := 588_895 // of the lines
		if terminal {
			size += lines // each has a carriage return
		}
		var got bytes.Buffer
		stalls := 0
		slow := writerFunc(func(p []byte) (int, error) {
			time.Sleep(100 * time.Microsecond)
			if size-got.Len() < 100_000 { // more than fits into a pipe
				time.Sleep(100 * time.Millisecond)
				if stalls++; stalls <= 3 {
					time.Sleep(2 * drainGrace)
				}
			}
			return got.Write(p)
		})
		process := process("seq", strconv.Itoa(lines))
		process.Terminal = terminal
		code, err := c.do(t, ExecArgs{Process: process, Stdout: slow})
		if err != nil || code != 0 {
			t.Fatalf("terminal %t: exec = %d, %v", terminal, code, err)
		}
		if n := bytes.Count(got.Bytes(), []byte("\n")); n != lines || !strings.HasSuffix(strings.ReplaceAll(got.String(), "\r", ""), fmt.Sprintf("\n%d\n", lines)) {
			t.Errorf("terminal %t: %d of %d lines", terminal, n, lines)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestExecSurvivor holds that a child that keeps the output open neither delays the result nor
// loses earlier output.
func TestExecSurvivor(t *testing.T) {
	c := newContainer(t)
	for _, script := range []string{
		"echo before; sleep 98761 &",
		"echo before; setsid sleep 98761 &",
		"echo before; (while :; do echo noise; done) & exit 0",
	} {
		var out bytes.Buffer
		start := time.Now()
		code, err := c.do(t, ExecArgs{Process: shell(script), Stdout: &out})
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("%q took %v", script, took)
		}
		if err != nil || code != 0 || !strings.Contains(out.String(), "before\n") {
			t.Errorf("%q = %d, %v, output of %d bytes", script, code, err, out.Len())
		}
	}
	if n := c.processes(t, "98761"); n != 2 {
		t.Errorf("%d of 2 background processes live on", n)
	}
}

// TestExecTimeoutKillsAll holds that the end of ctx kills every process of the exec: the process,
// its children, those in other process groups or sessions, and those that ignore signals.
func TestExecTimeoutKillsAll(t *testing.T) {
	c := newContainer(t)
	ready := make(chan struct{})
	out := writerFunc(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte("ready")) {
			close(ready)
		}
		return len(p), nil
	})
	p, err := c.Exec(t.Context(), ExecArgs{ID: c.id, Stdout: out, Process: shell(`
		trap "" TERM HUP INT
		set -m
		sleep 98762 &
		setsid sleep 98762 &
		(sleep 98762; sleep 98762) &
		echo ready
		while :; do sleep 98762 & wait; done`)})
	if err != nil {
		t.Fatal(err)
	}
	<-ready
	eventually(t, "children", func() bool { return c.processes(t, "98762") >= 4 })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	start := time.Now()
	code, err := p.Wait(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 20*time.Second {
		t.Errorf("Wait = %d, %v after %v", code, err, time.Since(start))
	}
	eventually(t, "the end of all children", func() bool { return c.processes(t, "98762") == 0 })
}

type syncBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestExecTerminal(t *testing.T) {
	c := newContainer(t)
	var out syncBuffer
	stdin, typed := io.Pipe()
	p, err := c.Exec(t.Context(), ExecArgs{
		ID: c.id, Stdin: stdin, Stdout: &out,
		Process: &specs.Process{Terminal: true, Args: []string{"sh"}, Cwd: "/", Env: []string{"PATH=/bin", "PS1=> "}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Resize(132, 43); err != nil {
		t.Error(err)
	}
	for _, step := range []struct{ typed, shown string }{
		{"test -t 0 && test -t 1 && echo term''inal\n", "terminal"}, {"stty size\n", "43 132"}, {"exit 9\n", ""},
	} {
		if _, err := io.WriteString(typed, step.typed); err != nil {
			t.Fatal(err)
		}
		eventually(t, step.typed, func() bool { return strings.Contains(out.String(), step.shown) })
	}
	code, err := p.Wait(t.Context())
	if err != nil || code != 9 {
		t.Errorf("Wait = %d, %v, output %q", code, err, out.String())
	}
	if err := p.Resize(1, 1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Resize after the end = %v", err)
	}
}

// TestExecTerminalSurvivor is TestExecSurvivor with a terminal.
func TestExecTerminalSurvivor(t *testing.T) {
	c := newContainer(t)
	var out bytes.Buffer
	process := shell("trap '' HUP; echo before; sleep 98764 &")
	process.Terminal = true
	start := time.Now()
	code, err := c.do(t, ExecArgs{Process: process, Stdout: &out})
	if err != nil || code != 0 || out.String() != "before\r\n" || time.Since(start) > 20*time.Second {
		t.Errorf("exec = %d, %v, output %q after %v", code, err, out.String(), time.Since(start))
	}
}

// TestExecFiles passes descriptors directly to the process.
func TestExecFiles(t *testing.T) {
	c := newContainer(t)
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, []byte("direct"), 0o600); err != nil {
		t.Fatal(err)
	}
	stdin, err := os.Open(in)
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	if code, err := c.do(t, ExecArgs{Process: process("cat"), Stdin: stdin, Stdout: stdout}); err != nil || code != 0 {
		t.Fatalf("exec = %d, %v", code, err)
	}
	if text, err := os.ReadFile(out); err != nil || string(text) != "direct" {
		t.Errorf("output %q, %v", text, err)
	}
}

func TestExecErrors(t *testing.T) {
	c := newContainer(t)
	_, err := c.do(t, ExecArgs{Process: process("no-such-command"), Stdout: io.Discard, Stderr: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "no-such-command") || !strings.Contains(err.Error(), "not found") {
		t.Errorf("unknown command: %v", err)
	}
	if _, err := c.Exec(t.Context(), ExecArgs{ID: "mica-ocitest-none", Process: process("true")}); !errdefs.IsNotFound(err) {
		t.Errorf("unknown container: %v", err)
	}
	if _, err := c.Exec(t.Context(), ExecArgs{ID: c.id}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no process: %v", err)
	}
	terminal := process("no-such-command")
	terminal.Terminal = true
	if _, err := c.do(t, ExecArgs{Process: terminal}); err == nil || !strings.Contains(err.Error(), "no-such-command") {
		t.Errorf("unknown command on a terminal: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Exec(ctx, ExecArgs{ID: c.id, Process: process("sleep", "98765")}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled start: %v", err)
	}
	if n := c.processes(t, "98765"); n != 0 {
		t.Errorf("%d processes of a cancelled start", n)
	}
	broken := errors.New("broken")
	_, err = c.do(t, ExecArgs{Process: shell("echo x"), Stdout: writerFunc(func([]byte) (int, error) { return 0, broken })})
	if !errors.Is(err, broken) {
		t.Errorf("failing writer: %v", err)
	}
}

func TestExecManyAtOnce(t *testing.T) {
	c := newContainer(t)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			var out bytes.Buffer
			code, err := c.do(t, ExecArgs{Process: shell(fmt.Sprintf("echo %d; exit %d", i, i)), Stdout: &out})
			if err != nil || code != i || out.String() != fmt.Sprintf("%d\n", i) {
				t.Errorf("exec %d = %d, %v, %q", i, code, err, out.String())
			}
		})
	}
	wg.Wait()
}

func TestStatePauseResumeUpdate(t *testing.T) {
	c := newContainer(t)
	ctx := t.Context()
	status := func() specs.ContainerState {
		t.Helper()
		s, err := c.State(ctx, c.id)
		if err != nil {
			t.Fatal(err)
		}
		if s.ID != c.id || s.Pid <= 1 {
			t.Errorf("state %+v", s)
		}
		return s.Status
	}
	if s := status(); s != specs.StateRunning {
		t.Errorf("state %s", s)
	}
	if _, err := c.run(ctx, nil, "pause", c.id); err != nil {
		t.Fatal(err)
	}
	// The kernel freezes asynchronously, and crun does not wait for it.
	eventually(t, "the state paused", func() bool { return status() == StatePaused })
	if _, err := c.run(ctx, nil, "resume", c.id); err != nil {
		t.Fatal(err)
	}
	if s := status(); s != specs.StateRunning {
		t.Errorf("state %s after resume", s)
	}
	shares, limit, pids := uint64(333), int64(100<<20), int64(77)
	err := c.Update(ctx, c.id, &specs.LinuxResources{
		CPU: &specs.LinuxCPU{Shares: &shares}, Memory: &specs.LinuxMemory{Limit: &limit}, Pids: &specs.LinuxPids{Limit: &pids},
	})
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"cpu/%s/cpu.shares": "333", "memory/%s/memory.limit_in_bytes": "104857600", "pids/%s/pids.max": "77"} {
		text, err := os.ReadFile("/sys/fs/cgroup/" + fmt.Sprintf(file, c.id))
		if errors.Is(err, os.ErrNotExist) {
			t.Skipf("cgroup v1 is not mounted as expected: %v", err)
		}
		if err != nil || strings.TrimSpace(string(text)) != want {
			t.Errorf("%s = %q, %v", file, text, err)
		}
	}
	if err := c.Update(ctx, c.id, &specs.LinuxResources{Unified: map[string]string{"pids.max": "1"}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("update of unified limits: %v", err)
	}
	for name, f := range map[string]func() error{
		"state":  func() error { _, err := c.State(ctx, "mica-ocitest-none"); return err },
		"update": func() error { return c.Update(ctx, "mica-ocitest-none", &specs.LinuxResources{}) },
	} {
		if err := f(); !errdefs.IsNotFound(err) {
			t.Errorf("%s of an unknown container: %v", name, err)
		}
	}
}

func TestFeatures(t *testing.T) {
	for _, name := range []string{"runc", "crun"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Logf("no %s here", name)
			continue
		}
		f, err := New(Handler{Path: name, Root: t.TempDir()}, Options{}).Features(t.Context())
		if err != nil || !slices.Contains(f.MountOptions, "rro") || f.Linux == nil || !slices.Contains(f.Linux.Namespaces, "user") {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
		if pipe := StartPipe(f); pipe != map[string]string{"runc": "read", "crun": "write"}[name] {
			t.Errorf("%s starts by %q", name, pipe)
		}
		if !PlainState(f) {
			t.Errorf("%s is not known to have a plain state", name)
		}
	}
	if pipe := StartPipe(crunFeatures("")); pipe != "" {
		t.Errorf("an unknown runtime starts by %q", pipe)
	}
	if PlainState(crunFeatures("")) {
		t.Error("an unknown runtime has a plain state")
	}
	for version, want := range map[string]bool{"crun version 1.8.1": true, "crun version 0.21": false, "crun version 1.3": false, "": false} {
		if got := slices.Contains(crunFeatures(version).MountOptions, "rro"); got != want {
			t.Errorf("%q: rro %v", version, got)
		}
		if crunFeatures(version).Annotations[ShallowBinds] == "" {
			t.Errorf("%q: recursive binds in user namespaces", version)
		}
	}
	for _, path := range []string{"/bin/true", "/bin/false"} {
		if f, err := New(Handler{Path: path}, Options{}).Features(t.Context()); err == nil {
			t.Errorf("features of %s: %+v", path, f)
		}
	}
}

// TestProbe holds that a candidate is chosen by running it, and that the reasons against the others
// are returned.
func TestProbe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	work := t.TempDir()
	args := ProbeArgs{WorkDir: work, Binary: busybox, Args: []string{"true"}}
	before := cgroupsOf(t)
	h, errs := Probe(t.Context(), []Handler{{Path: "no-such-runtime"}, {Path: "/bin/false"}, {Path: "runc"}}, args)
	if !filepath.IsAbs(h.Path) || filepath.Base(h.Path) != "runc" || len(errs) != 2 {
		t.Errorf("Probe = %+v, %v", h, errs)
	}
	h, errs = Probe(t.Context(), []Handler{{Path: "runc"}}, ProbeArgs{WorkDir: work, Binary: busybox, Args: []string{"false"}})
	if h.Path != "" || len(errs) != 1 {
		t.Errorf("Probe of a failing binary = %+v, %v", h, errs)
	}
	if h, errs := Probe(t.Context(), nil, args); h.Path != "" || len(errs) != 1 {
		t.Errorf("Probe of nothing = %+v, %v", h, errs)
	}
	if left, err := os.ReadDir(work); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	awaitCgroups(t, before)
}

// awaitCgroups waits until there are no cgroups of probes except those in before, which belong to
// probes of other processes.
func awaitCgroups(t *testing.T, before []string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left := slices.DeleteFunc(cgroupsOf(t), func(path string) bool { return slices.Contains(before, path) })
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %v", left)
		}
	}
}

func cgroupsOf(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("/sys/fs/cgroup/*/mica-probe-*")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestProbePrefersCrunWhereItRuns probes crun first. On a host with hybrid cgroups, crun refuses to
// run and reports why.
func TestProbePrefersCrunWhereItRuns(t *testing.T) {
	if _, err := exec.LookPath("crun"); err != nil || os.Geteuid() != 0 {
		t.Skipf("needs root and crun: %v", err)
	}
	h, errs := Probe(t.Context(), []Handler{{Path: "crun"}, {Path: "runc"}},
		ProbeArgs{WorkDir: t.TempDir(), Binary: busybox, Args: []string{"true"}})
	if testcgroup.Hybrid() {
		if filepath.Base(h.Path) != "runc" || len(errs) != 1 || !strings.Contains(errs[0].Error(), "hybrid") {
			t.Errorf("Probe = %+v, %v", h, errs)
		}
	} else if filepath.Base(h.Path) != "crun" || len(errs) != 0 {
		t.Errorf("Probe = %+v, %v", h, errs)
	}
}

// TestWithCrun runs this package's tests with crun, in a mount namespace without the unified
// hierarchy.
func TestWithCrun(t *testing.T) {
	if os.Getenv(crunEnv) != "" {
		t.Skip("already with crun")
	}
	if _, err := exec.LookPath("crun"); err != nil || os.Geteuid() != 0 {
		t.Skipf("needs root and crun: %v", err)
	}
	args := testcgroup.Command(os.Args[0], "-test.run", "TestExec|TestState|TestProbe", "-test.timeout=5m")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), crunEnv+"=crun")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestWithDirectStarts runs this package's tests of exec with direct starts.
func TestWithDirectStarts(t *testing.T) {
	if os.Getenv(directEnv) != "" || os.Getenv(crunEnv) != "" {
		t.Skip("already")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	cmd := exec.Command(os.Args[0], "-test.run", "TestExec", "-test.skip", "TestExecDirectly", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), directEnv+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestMessage(t *testing.T) {
	for log, want := range map[string]string{
		"":             "",
		"plain text\n": "plain text",
		`{"level":"warning","msg":"w"}` + "\n" + `{"level":"error","msg":"one"}` + "\n" + `{"level":"fatal","msg":"two"}`: "one; two",
		"\xff\n": "�",
	} {
		if got := message([]byte(log)); got != want {
			t.Errorf("message(%q) = %q, want %q", log, got, want)
		}
	}
	if got := message(bytes.Repeat([]byte("x"), 1<<20)); len(got) > maxMessage+10 {
		t.Errorf("message of %d bytes", len(got))
	}
}

func TestParseStat(t *testing.T) {
	s, err := parseStat("12 (a) b ) R) S 7 12 5 0 -1")
	if err != nil || s != (procStat{parent: 7, session: 5}) {
		t.Errorf("parseStat = %+v, %v", s, err)
	}
	for _, text := range []string{"", "1 (x", "1 (x) S", "1 (x) S a b c"} {
		if s, err := parseStat(text); err == nil {
			t.Errorf("parseStat(%q) = %+v", text, s)
		}
	}
}

func TestArgs(t *testing.T) {
	r := New(Handler{Path: "/usr/bin/crun-1.27", Root: "/run/r", Options: []string{"--debug"}}, Options{SystemdCgroup: true})
	if got := r.Args(); !slices.Equal(got, []string{"/usr/bin/crun-1.27", "--root", "/run/r", "--systemd-cgroup", "--debug"}) {
		t.Errorf("Args = %q", got)
	}
	if r.Handler().Type != "crun" {
		t.Errorf("type %q", r.Handler().Type)
	}
}

// BenchmarkExec measures a whole exec; BenchmarkPlainExec only the OCI runtime's part.
func BenchmarkExec(b *testing.B) {
	c := newContainer(b)
	for b.Loop() {
		if code, err := c.do(b, ExecArgs{Process: process("true"), Stdout: io.Discard, Stderr: io.Discard}); err != nil || code != 0 {
			b.Fatal(code, err)
		}
	}
}

func BenchmarkPlainExec(b *testing.B) {
	c := newContainer(b)
	file := filepath.Join(b.TempDir(), "process.json")
	text, err := json.Marshal(process("true"))
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		b.Fatal(err)
	}
	args := append(c.Args(), "exec", "--detach", "--process", file, "--pid-file", file+".pid", c.id)
	for b.Loop() {
		if err := exec.Command(args[0], args[1:]...).Run(); err != nil {
			b.Fatal(err)
		}
	}
}
