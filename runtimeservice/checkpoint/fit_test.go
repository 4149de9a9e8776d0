package checkpoint

import (
	"cmp"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// aSpec returns a specification like that of a pod's container.
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

// Property: a process continues only with no more privileges, the same kinds of namespaces and the
// same mounts as before. With Exact, it must also be the process that the config describes.
func TestUnfit(t *testing.T) {
	for name, tc := range map[string]struct {
		was, now func(*specs.Spec)
		says     string // always
		exactly  string // with Exact
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
			for exact, want := range map[bool]string{false: tc.says, true: cmp.Or(tc.says, tc.exactly)} {
				got := strings.Join(unfit(was, now, exact), "; ")
				if want == "" && got != "" || !strings.Contains(got, want) {
					t.Errorf("exact %t: %q, want %q", exact, got, want)
				}
				if strings.Contains(got, "s3cr3t") || strings.Contains(got, "n3w") {
					t.Errorf("the error contains the value of a variable: %q", got)
				}
			}
		})
	}
}

// A checkpoint cannot restore a process of another user than the config requests.
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
	null, pipe := Stream("/dev/null"), Stream("pipe:[1]")
	for name, tc := range map[string]struct {
		config  *runtimeapi.ContainerConfig
		streams [3]Stream
		fit     bool
	}{
		"no stdin":        {&runtimeapi.ContainerConfig{}, [3]Stream{null, pipe, pipe}, true},
		"stdin":           {&runtimeapi.ContainerConfig{Stdin: true}, [3]Stream{pipe, pipe, pipe}, true},
		"no more stdin":   {&runtimeapi.ContainerConfig{}, [3]Stream{pipe, pipe, pipe}, false},
		"stdin now":       {&runtimeapi.ContainerConfig{Stdin: true}, [3]Stream{null, pipe, pipe}, false},
		"stdout was lost": {&runtimeapi.ContainerConfig{}, [3]Stream{null, null, pipe}, false},
		"a terminal":      {&runtimeapi.ContainerConfig{Tty: true}, [3]Stream{"/dev/pts/0", "/dev/pts/0", "/dev/pts/0"}, true},
	} {
		if got := unfitStreams(tc.config, tc.streams); len(got) == 0 != tc.fit {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestCheckRuntime(t *testing.T) {
	for name, ok := range map[string]bool{"runc": true, "io.containerd.runc.v2": true, "": true, "crun": false, "runsc": false, "kata": false} {
		if err := CheckRuntime(name, "runc", "/usr/sbin/runc"); (err == nil) != ok || !ok && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := CheckRuntime("youki", "", "/usr/bin/other"); err == nil {
		t.Error("a runtime of no known kind takes everything")
	}
}

func TestCheckFit(t *testing.T) {
	fit := Fit{Was: aSpec(), Now: aSpec(), Exact: true, Config: &runtimeapi.ContainerConfig{}, Streams: [3]Stream{"/dev/null", "pipe:[1]", "pipe:[2]"}}
	if err := CheckFit(fit); err != nil {
		t.Errorf("the same container: %v", err)
	}
	fit.Now.Process.Args = []string{"true"}
	fit.Now.Process.User.UID = 1000
	fit.Config.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
		RunAsUser: &runtimeapi.Int64Value{Value: 1000},
	}}
	fit.Streams[2] = "/dev/null"
	err := CheckFit(fit)
	if !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("another container: %v", err)
	}
	for _, reason := range []string{"has command", "its stderr is /dev/null", "runs as user 5 and the config asks for 1000"} {
		if !strings.Contains(err.Error(), reason) {
			t.Errorf("error %q lacks %q", err, reason)
		}
	}
}
