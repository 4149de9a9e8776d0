package runtimeservice

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/checkpoint"
	"github.com/micarun/mica/runtimeservice/oci"
)

// aSpec is a specification as a pod's container has it.
func aSpec() *specs.Spec {
	all := []string{"CAP_CHOWN", "CAP_KILL"}
	return &specs.Spec{
		Root: &specs.Root{Path: "/r"},
		Process: &specs.Process{
			Args: []string{"sh", "-c", "x"}, Cwd: "/", Env: []string{"PATH=/bin", "SECRET=s3cr3t"},
			User:            specs.User{UID: 5, GID: 6, AdditionalGids: []uint32{1, 2}},
			Capabilities:    &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all},
			NoNewPrivileges: true,
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc"}, {Destination: "/data/", Type: "bind", Source: "/a"}, {Destination: "/etc/hosts", Options: []string{"rbind"}},
		},
		Linux: &specs.Linux{
			Seccomp: &specs.LinuxSeccomp{},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace},
				{Type: specs.PIDNamespace},
				{Type: specs.NetworkNamespace, Path: "/run/pods/1/net"},
				{Type: specs.IPCNamespace, Path: "/run/pods/1/ipc"},
				{Type: specs.UTSNamespace, Path: "/run/pods/1/uts"},
			},
		},
	}
}

// Property: a process goes on only where it has no more privileges, the same
// kinds of namespaces and the same mounts as before; and, if the config is to be
// right about it, only as the process that the config describes.
func TestUnfit(t *testing.T) {
	for name, tc := range map[string]struct {
		was, now func(*specs.Spec)
		says     string // of what is wrong in any case
		exactly  string // of what is wrong if the config must be right
	}{
		"the same":               {},
		"another pod":            {now: func(s *specs.Spec) { s.Linux.Namespaces[2].Path = "/run/pods/2/net" }},
		"another source":         {now: func(s *specs.Spec) { s.Mounts[1].Source = "/b" }},
		"a lost mount":           {now: func(s *specs.Spec) { s.Mounts = s.Mounts[:2] }, says: `mounts that the config lacks: ["/etc/hosts"]`},
		"a new mount":            {was: func(s *specs.Spec) { s.Mounts = s.Mounts[:2] }, says: `lacks mounts of the config: ["/etc/hosts"]`},
		"the node's network":     {now: func(s *specs.Spec) { s.Linux.Namespaces = slices.Delete(s.Linux.Namespaces, 2, 3) }, says: "network namespace was the pod's and would be the node's"},
		"a shared PID namespace": {now: func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/p" }, says: "pid namespace was its own and would be the pod's"},
		"a user namespace": {was: func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		}, says: "user namespace"},
		"a terminal":              {now: func(s *specs.Spec) { s.Process.Terminal = true }, says: "terminal"},
		"fewer capabilities":      {now: func(s *specs.Spec) { s.Process.Capabilities = nil }, says: `capabilities that the config does not give: ["CAP_CHOWN" "CAP_KILL"]`},
		"more capabilities":       {was: func(s *specs.Spec) { s.Process.Capabilities = nil }},
		"new privileges":          {was: func(s *specs.Spec) { s.Process.NoNewPrivileges = false }, says: "can gain privileges"},
		"no seccomp":              {was: func(s *specs.Spec) { s.Linux.Seccomp = nil }, says: "seccomp"},
		"read-only root":          {now: func(s *specs.Spec) { s.Root.Readonly = true }, says: "writable"},
		"another command":         {now: func(s *specs.Spec) { s.Process.Args = []string{"true"} }, exactly: "command"},
		"another directory":       {now: func(s *specs.Spec) { s.Process.Cwd = "/tmp" }, exactly: "working directory"},
		"another user":            {now: func(s *specs.Spec) { s.Process.User.UID = 0 }, exactly: "user"},
		"other groups":            {now: func(s *specs.Spec) { s.Process.User.AdditionalGids = []uint32{1} }, exactly: "supplementary groups"},
		"groups in another order": {now: func(s *specs.Spec) { s.Process.User.AdditionalGids = []uint32{2, 1} }},
		"another host name":       {now: func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "HOSTNAME=b") }},
		"another environment":     {now: func(s *specs.Spec) { s.Process.Env = []string{"PATH=/bin", "SECRET=n3w"} }, exactly: `"SECRET"`},
	} {
		t.Run(name, func(t *testing.T) {
			was, now := aSpec(), aSpec()
			if tc.was != nil {
				tc.was(was)
			}
			if tc.now != nil {
				tc.now(now)
			}
			for exact, want := range map[bool]string{false: tc.says, true: either(tc.says, tc.exactly)} {
				got := strings.Join(unfit(was, now, exact), "; ")
				if want == "" && got != "" || !strings.Contains(got, want) {
					t.Errorf("exact %t: %q, want %q", exact, got, want)
				}
				if strings.Contains(got, "s3cr3t") || strings.Contains(got, "n3w") {
					t.Errorf("the value of a variable is told: %q", got)
				}
			}
		})
	}
}

// A checkpoint cannot bring another user back than the config asks for.
func TestUnfitUser(t *testing.T) {
	type sc = runtimeapi.LinuxContainerSecurityContext
	asked := &sc{RunAsUser: &runtimeapi.Int64Value{Value: 1000}}
	app := specs.User{UID: 1000, GID: 100, AdditionalGids: []uint32{100, 7}}
	for name, tc := range map[string]struct {
		sc       *sc
		was, now specs.User
		says     string
	}{
		"the same":            {asked, app, app, ""},
		"no user asked for":   {&sc{}, specs.User{}, app, ""},
		"root asked for":      {&sc{RunAsUser: &runtimeapi.Int64Value{}}, app, specs.User{}, ""},
		"root instead":        {asked, specs.User{}, app, "runs as user 0 and the config asks for 1000"},
		"another than named":  {&sc{RunAsUsername: "app"}, specs.User{UID: 5, GID: 100}, app, "runs as user 5"},
		"a group more":        {asked, specs.User{UID: 1000, GID: 100, AdditionalGids: []uint32{100, 9}}, app, "1 of them, such as 9"},
		"another first group": {asked, specs.User{UID: 1000}, app, "such as 0"},
		"fewer groups":        {asked, specs.User{UID: 1000, GID: 100}, app, ""},
	} {
		got := strings.Join(unfitUser(tc.sc, tc.was, tc.now), "; ")
		if tc.says == "" && got != "" || !strings.Contains(got, tc.says) {
			t.Errorf("%s: %q, want %q", name, got, tc.says)
		}
	}
}

func TestUnfitStreams(t *testing.T) {
	null, pipe := checkpoint.Stream("/dev/null"), checkpoint.Stream("pipe:[1]")
	for name, tc := range map[string]struct {
		config  *runtimeapi.ContainerConfig
		streams [3]checkpoint.Stream
		fit     bool
	}{
		"no stdin":        {&runtimeapi.ContainerConfig{}, [3]checkpoint.Stream{null, pipe, pipe}, true},
		"stdin":           {&runtimeapi.ContainerConfig{Stdin: true}, [3]checkpoint.Stream{pipe, pipe, pipe}, true},
		"no more stdin":   {&runtimeapi.ContainerConfig{}, [3]checkpoint.Stream{pipe, pipe, pipe}, false},
		"stdin now":       {&runtimeapi.ContainerConfig{Stdin: true}, [3]checkpoint.Stream{null, pipe, pipe}, false},
		"stdout was lost": {&runtimeapi.ContainerConfig{}, [3]checkpoint.Stream{null, null, pipe}, false},
		"a terminal":      {&runtimeapi.ContainerConfig{Tty: true}, [3]checkpoint.Stream{"/dev/pts/0", "/dev/pts/0", "/dev/pts/0"}, true},
	} {
		if got := unfitStreams(tc.config, tc.streams); len(got) == 0 != tc.fit {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestCheckRuntime(t *testing.T) {
	runc := oci.Handler{Type: "runc", Path: "/usr/sbin/runc"}
	for name, ok := range map[string]bool{"runc": true, "io.containerd.runc.v2": true, "": true, "crun": false, "runsc": false, "kata": false} {
		if err := checkRuntime(name, runc); (err == nil) != ok || !ok && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := checkRuntime("youki", oci.Handler{Path: "/usr/bin/other"}); err == nil {
		t.Error("a runtime of no known kind takes everything")
	}
}

func TestCheckRestore(t *testing.T) {
	mode := func(m runtimeapi.NamespaceMode) *runtimeapi.ContainerConfig {
		return &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: m},
		}}}
	}
	for m, ok := range map[runtimeapi.NamespaceMode]bool{
		runtimeapi.NamespaceMode_POD: true, runtimeapi.NamespaceMode_CONTAINER: true, runtimeapi.NamespaceMode_NODE: false, runtimeapi.NamespaceMode_TARGET: false,
	} {
		if err := checkRestore(&runtimeapi.PodSandboxConfig{}, mode(m)); (err == nil) != ok || !ok && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%v: %v", m, err)
		}
	}
	mapped := &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD}},
	}}}
	if err := checkRestore(mapped, mode(runtimeapi.NamespaceMode_CONTAINER)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a user namespace: %v", err)
	}
}

// TestProcessConfig holds that the process is the checkpoint's and all else the
// request's, which itself stays as it was.
func TestProcessConfig(t *testing.T) {
	from := &source{Description: checkpoint.Description{Spec: *aSpec(), Config: checkpoint.Config{RootfsImageName: "registry.test/base:1"}}}
	request := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Labels: map[string]string{"a": "b"}, Args: []string{"ignored"},
		Image: &runtimeapi.ImageSpec{Image: "/x.tar", UserSpecifiedImage: "/x.tar"},
	}
	got := from.processConfig(request)
	if !slices.Equal(got.Command, []string{"sh", "-c", "x"}) || got.Args != nil || got.WorkingDir != "/" || len(got.Envs) != 2 || got.Labels["a"] != "b" {
		t.Errorf("processConfig = %v", got)
	}
	if !slices.Equal(request.Args, []string{"ignored"}) || request.Command != nil {
		t.Errorf("the request has become %v", request)
	}
	recorded := restoredConfig(request, from)
	if recorded.Image.Image != "registry.test/base:1" || recorded.Image.UserSpecifiedImage != "" || request.Image.Image != "/x.tar" {
		t.Errorf("recorded image %v, requested %v", recorded.Image, request.Image)
	}
	from.exact = true
	if got := from.processConfig(request); got != request {
		t.Error("a config that must be right is changed")
	}
}

func TestAnnotate(t *testing.T) {
	s := new(specs.Spec)
	p := testPod(PodReady, runtimeapi.NamespaceMode_POD)
	c := testContainer(t)
	if err := annotate(s, p, c); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p.meta().GetName(), s.Annotations["io.kubernetes.pod.name"]); diff != "" || s.Annotations["io.kubernetes.cri-o.Annotations"] == "" {
		t.Errorf("annotations = %v", s.Annotations)
	}
}

func TestMatchContainers(t *testing.T) {
	config := func(name string) *runtimeapi.ContainerConfig {
		return &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: "x"},
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			}},
		}
	}
	pod := testPod(PodReady, runtimeapi.NamespaceMode_POD).config()
	archives := map[string]string{"a": "1.tar", "b": "2.tar"}
	for says, configs := range map[string][]*runtimeapi.ContainerConfig{
		"":                                {config("b"), config("a")},
		"no container configs":            nil,
		"without a name":                  {config("a"), config("")},
		"two configs for container \"a\"": {config("a"), config("b"), config("a")},
		"has no container \"c\"":          {config("a"), config("b"), config("c")},
		"no config for container \"b\"":   {config("a")},
	} {
		err := matchContainers(pod, configs, archives)
		if says == "" && err != nil || says != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), says)) {
			t.Errorf("%q: %v", says, err)
		}
	}
}

func TestClaimOutput(t *testing.T) {
	dir, full := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, ok := range map[string]bool{dir: true, full: false, filepath.Join(full, "x"): false, "relative": false, "": false, dir + "/none": false} {
		claim, err := claimOutput(path)
		if (err == nil) != ok || !ok && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", path, err)
		}
		if err != nil {
			continue
		}
		if _, err := claimOutput(path); !errdefs.IsUnavailable(err) {
			t.Errorf("claim a directory that is claimed: %v", err)
		}
		if err := claim.Close(); err != nil {
			t.Error(err)
		}
		if claim, err = claimOutput(path); err != nil {
			t.Errorf("claim a directory that was claimed: %v", err)
		}
		_ = claim.Close()
	}
}

func TestRefuseOptions(t *testing.T) {
	if err := refuseOptions(map[string]string{"b": "", "a": ""}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("options: %v", err)
	}
	if err := refuseOptions(nil); err != nil {
		t.Error(err)
	}
}

// TestCriuOptions holds that CRIU finds, below the runtime's own root, what crun
// has masked directories with and calls by its default root in a checkpoint.
func TestCriuOptions(t *testing.T) {
	for kind, want := range map[string]string{
		"runc": "tcp-close\n",
		"crun": "tcp-close\nexternal mnt[/run/crun/.empty-directory]:/state/crun/.empty-directory\n",
	} {
		if got := criuOptions(oci.Handler{Type: kind, Root: "/state/" + kind}); got != want {
			t.Errorf("%s: %q, want %q", kind, got, want)
		}
	}
}

// TestAwaitProgram holds that a process that has not begun with its own program
// is waited for, as long as the caller has time.
func TestAwaitProgram(t *testing.T) {
	cmd := exec.Command("sh", "-c", "read x; exec sleep 1000")
	begin, err := cmd.StdinPipe()
	if err = errors.Join(err, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	waiter := programOf(pid)
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := awaitProgram(short, pid, waiter); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("await what has not begun: %v", err)
	}
	if err := awaitProgram(short, pid, program{}); err != nil {
		t.Errorf("await nothing: %v", err)
	}
	if _, err := begin.Write([]byte("go\n")); err != nil {
		t.Error(err)
	}
	if err := awaitProgram(t.Context(), pid, waiter); err != nil || programOf(pid) == waiter {
		t.Errorf("await what begins: %v", err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err := awaitProgram(short, pid, waiter); err != nil {
		t.Errorf("await what has ended: %v", err)
	}
}

// TestAwaitUsers holds that whoever has a directory of the checkpoint open is
// waited for, and killed after the grace; and nobody else.
func TestAwaitUsers(t *testing.T) {
	dir := t.TempDir()
	images := filepath.Join(dir, "c", "checkpoint")
	if err := os.MkdirAll(images, 0o700); err != nil {
		t.Fatal(err)
	}
	reader := exec.Command("tail", "-f", filepath.Join(dir, "log")) // somebody who looks on
	if err := os.WriteFile(filepath.Join(dir, "log"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := awaitUsers(t.Context(), dir, time.Minute); err != nil {
		t.Errorf("nobody is waited for: %v", err)
	}
	opened, err := os.Open(images)
	if err != nil {
		t.Fatal(err)
	}
	dumper := exec.Command("sleep", "1000")
	dumper.ExtraFiles = []*os.File{opened}
	if err := errors.Join(reader.Start(), dumper.Start(), opened.Close()); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- dumper.Wait() }()
	defer func() {
		_ = reader.Process.Kill()
		_ = reader.Wait()
	}()
	if got := usersOf(dir); !slices.Equal(got, []int{dumper.Process.Pid}) {
		t.Errorf("usersOf = %v, want the dumper %d and not the reader %d", got, dumper.Process.Pid, reader.Process.Pid)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := awaitUsers(short, dir, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the end of the context = %v", err)
	}
	if err := awaitUsers(t.Context(), dir, 10*time.Millisecond); err != nil {
		t.Errorf("awaitUsers = %v", err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the dumper is not killed")
	}
	if reader.ProcessState != nil {
		t.Error("the reader was killed")
	}
}
