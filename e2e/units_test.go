package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/node"
	"github.com/micarun/mica/internal/testregistry"
)

// unitsEnv means that binaries and units are installed on this machine and the test may use them.
// The machine of `make vm` sets it.
const unitsEnv = "MICA_E2E_UNITS"

// rightsLine matches the lines of a process's status for seccomp filter, bounding set and
// no_new_privs.
var rightsLine = regexp.MustCompile(`(?m)^(CapBnd|NoNewPrivs|Seccomp|Seccomp_filters):.*\n`)

// The units restrict neither containers nor exec sessions. Daemon, keeper and host see each other's
// mounts.
func TestServiceUnits(t *testing.T) {
	if os.Getenv(unitsEnv) == "" {
		t.Skip("needs a separate machine with the units installed")
	}
	f := startUnits(t)
	holders := map[string]string{"the host": "1"}
	for _, unit := range []string{"micad", "mica-keeper"} {
		t.Logf("%s", f.machine("systemd-analyze", "security", "--no-pager", "--threshold=96", unit+".service"))
		holders[unit] = strings.TrimSpace(f.machine("systemctl", "show", "--property=MainPID", "--value", unit))
	}
	podConfig := f.podConfig()
	podConfig.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{
		Privileged: true, NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE},
	}
	p := f.runPod(podConfig)
	config := f.containerConfig(toolsImage, "sh", "-c", "sleep 1000")
	config.Linux.SecurityContext.Privileged = true
	id := f.start(p, config)
	want := f.rights("/proc/1/status")
	for name, pid := range map[string]string{"the daemon": holders["micad"], "the keeper": holders["mica-keeper"], "a privileged container": f.pidOf(id)} {
		if got := f.rights("/proc/" + pid + "/status"); got != want {
			t.Errorf("%s has\n%s\nprocess 1 of the machine\n%s", name, got, want)
		}
	}
	if got := rightsOf(f.exec(id, "cat", "/proc/self/status")); got != want {
		t.Errorf("an exec session has\n%s\nprocess 1 of the machine\n%s", got, want)
	}
	plain := f.containerConfig(toolsImage, "sh", "-c", "sleep 1000")
	if got := f.exec(f.start(p, plain), "/bin/euid"); got != "Effective uid: 0\n" {
		t.Errorf("a setuid program in an exec session prints %q", got)
	}
	for name, pid := range holders {
		mounts, err := os.ReadFile("/proc/" + pid + "/mountinfo")
		f.no(err)
		for _, want := range []string{"/run/mica/pods/" + p.id + "/", "/merged "} {
			if !strings.Contains(string(mounts), want) {
				t.Errorf("%s does not see a mount of %s", name, want)
			}
		}
	}
}

// startUnits starts the units with a registry of the test's images. The machine is discarded
// afterwards.
func startUnits(t *testing.T) *fixture {
	t.Helper()
	registry := testregistry.New(testregistry.Options{Dir: filepath.Join(shared.images, "registry")})
	server, err := registry.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	f := &fixture{t: t, ctx: t.Context(), registry: registry, addr: server.Addr, logs: filepath.Join(t.TempDir(), "logs"), Node: &node.Node{}}
	f.no(node.WriteMirror("/etc/mica/certs.d", server.Addr))
	f.machine("systemctl", "daemon-reload")
	t.Cleanup(func() {
		if t.Failed() {
			out, err := exec.Command("journalctl", "--no-pager", "-n", "100", "-u", "micad", "-u", "mica-keeper").CombinedOutput()
			t.Logf("%s%v", out, err)
		}
	})
	f.machine("systemctl", "start", "mica-keeper", "micad")
	f.Runtime, f.Images, err = node.Dial(f.ctx, "/run/mica/mica.sock")
	f.no(err)
	return f
}

// machine runs a command on this machine and returns its output.
func (f *fixture) machine(name string, arguments ...string) string {
	f.t.Helper()
	out, err := exec.CommandContext(f.ctx, name, arguments...).CombinedOutput()
	if err != nil {
		f.t.Fatalf("run %s %s: %v: %s", name, strings.Join(arguments, " "), err, out)
	}
	return string(out)
}

func rightsOf(status string) string { return strings.Join(rightsLine.FindAllString(status, -1), "") }

func (f *fixture) rights(path string) string {
	f.t.Helper()
	status, err := os.ReadFile(path)
	f.no(err)
	return rightsOf(string(status))
}

// pidOf returns the host's process ID of the container's first process.
func (f *fixture) pidOf(id string) string {
	f.t.Helper()
	response, err := f.Runtime.ContainerStatus(f.ctx, id, true)
	f.no(err)
	var info struct{ PID int }
	f.no(json.Unmarshal([]byte(response.Info["info"]), &info))
	return fmt.Sprint(info.PID)
}
