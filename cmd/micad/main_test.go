package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/micarun/mica/internal/admin"
)

// TestMain runs the test binary as the command micad for scripts.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"micad": main})
}

func TestScripts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the daemon needs root")
	}
	bin := t.TempDir()
	build(t, bin)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup:               func(env *testscript.Env) error { return setup(t, env, bin) },
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ready":    ready,
			"gone":     gone,
			"manager":  manager,
			"notified": notified,
		},
	})
}

// build builds the executables that the daemon runs, and the tool.
func build(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", dir, "../mica", "../mica-keeper")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	// These tests never run the init of pods with a shared PID namespace.
	if err := os.WriteFile(filepath.Join(dir, "mica-init"), []byte("#!/bin/false\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// setup writes a configuration into the script's $WORK. The directories in it have short names,
// because socket paths are limited.
func setup(t *testing.T, env *testscript.Env, bin string) error {
	dir, err := os.MkdirTemp("", "micad-") //nolint:usetesting // t.TempDir is too long for socket paths
	if err != nil {
		return err
	}
	name := strings.ReplaceAll(filepath.Base(dir), "micad-", "mt")
	env.Defer(func() { clean(t, dir, name) })
	env.Values[fakeManager{}] = new(fakeManager)
	env.Setenv("DIR", dir)
	env.Setenv("NAME", name)
	env.Setenv("PATH", bin+":"+env.Getenv("PATH")+":/usr/sbin:/sbin")
	config := fmt.Sprintf(`
data_root = "%[1]s/data"
state_dir = "%[1]s/run"
[log]
level = 1
[network]
conf_dir = "%[1]s/net.d"
[cgroups]
default_parent = "/%[2]s"
[keeper]
binary = "%[3]s/mica-keeper"
[pods]
init_binary = "%[3]s/mica-init"
[nri]
enable = false
`, dir, name, bin)
	return os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600)
}

// clean ends the processes that a failed script left.
func clean(t *testing.T, dir, name string) {
	for _, proc := range processes(dir) {
		var pid int
		if _, err := fmt.Sscanf(proc, "/proc/%d/", &pid); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	for _, cgroup := range cgroups(name) {
		_ = os.Remove(cgroup)
	}
	_ = syscall.Unmount(filepath.Join(dir, "run", "pods"), syscall.MNT_DETACH)
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}

const patience = 2 * time.Minute

// ready waits until the daemon answers calls.
func ready(ts *testscript.TestScript, _ bool, _ []string) {
	client := admin.NewClient(filepath.Join(ts.Getenv("DIR"), "run", "admin.sock"))
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		info, err := client.Info(context.Background())
		if err == nil && info.ReadyAfter != "0s" {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("the daemon is not ready: %v", err)
		}
	}
}

// gone waits until no process has the argument $DIR, which the daemon and the keeper have, and no
// cgroup is named $NAME.
func gone(ts *testscript.TestScript, _ bool, _ []string) {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		left := remains(ts.Getenv("DIR"), ts.Getenv("NAME"))
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("still there: %s", strings.Join(left, ", "))
		}
	}
}

// fakeManager is the service manager of a script, and its key among the script's values.
type fakeManager struct{ conn *net.UnixConn }

func managerOf(ts *testscript.TestScript) *fakeManager {
	return ts.Value(fakeManager{}).(*fakeManager)
}

// manager starts a fake service manager and sets the environment so that the script's daemon
// reports to it.
func manager(ts *testscript.TestScript, _ bool, _ []string) {
	address := filepath.Join(ts.Getenv("DIR"), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	ts.Check(err)
	ts.Defer(func() { _ = conn.Close() })
	managerOf(ts).conn = conn
	ts.Setenv("NOTIFY_SOCKET", address)
	ts.Setenv("WATCHDOG_USEC", "1500000")
}

// notified waits until the manager receives a notification whose lines begin with the arguments.
// Negated, it searches the notifications received so far.
func notified(ts *testscript.TestScript, neg bool, want []string) {
	conn := managerOf(ts).conn
	ts.Check(conn.SetReadDeadline(time.Now().Add(patience)))
	for {
		text, err := receive(conn, !neg)
		if neg && errors.Is(err, syscall.EAGAIN) {
			return
		}
		ts.Check(err)
		if !beginsWith(text, want) {
			continue
		}
		if neg {
			ts.Fatalf("got notification %q", text)
		}
		return
	}
}

// receive returns the next packet. Without wait, it returns EAGAIN if there is none.
func receive(conn *net.UnixConn, wait bool) (string, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return "", err
	}
	packet := make([]byte, 4096)
	var n int
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		n, _, rerr = syscall.Recvfrom(int(fd), packet, syscall.MSG_DONTWAIT)
		return !wait || rerr != syscall.EAGAIN
	})
	return string(packet[:max(n, 0)]), errors.Join(err, rerr)
}

func beginsWith(text string, want []string) bool {
	lines := strings.Split(text, "\n")
	for i, w := range want {
		if i >= len(lines) || !strings.HasPrefix(lines[i], w) {
			return false
		}
	}
	return true
}

func remains(dir, name string) []string {
	var left []string
	for _, proc := range processes(dir) {
		text, _ := os.ReadFile(proc) // empty if the process has exited
		left = append(left, strings.ReplaceAll(string(text), "\x00", " "))
	}
	return append(left, cgroups(name)...)
}

// processes returns the cmdline files in /proc that mention dir.
func processes(dir string) []string {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	return slices.DeleteFunc(all, func(file string) bool {
		text, err := os.ReadFile(file)
		return err != nil || !strings.Contains(string(text), dir)
	})
}

func cgroups(name string) []string {
	found, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
	return found
}
