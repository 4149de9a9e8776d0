package main

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const roleVariable = "MICA_KEEPER_MAIN"

// TestMain runs the test binary as the command mica-keeper if the environment asks for it.
func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func keeper(t *testing.T, env []string, args ...string) (cmd *exec.Cmd, stderr *bytes.Buffer) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	stderr = new(bytes.Buffer)
	cmd = exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(append(os.Environ(), roleVariable+"=1"), env...)
	cmd.Stderr = stderr
	return cmd, stderr
}

// The keeper notifies its service manager when it is ready, and stays in its unit's cgroup. A
// second keeper reports that another one serves the directory.
func TestUnderServiceManager(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a keeper lowers its OOM score and reaps")
	}
	dir := filepath.Join(t.TempDir(), "keeper")
	address := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = manager.Close() }()
	first, stderr := keeper(t, []string{"NOTIFY_SOCKET=" + address}, "run", "--dir", dir)
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	if err := manager.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	packet := make([]byte, 4096)
	n, err := manager.Read(packet)
	if got := string(packet[:n]); err != nil || !strings.HasPrefix(got, "READY=1\n") {
		t.Errorf("notification %q, %v\n%s", got, err, stderr)
	}
	if got, want := cgroups(t, first.Process.Pid), cgroups(t, os.Getpid()); got != want {
		t.Errorf("the keeper has left its unit's cgroup: it is in\n%swant\n%s", got, want)
	}
	second, said := keeper(t, []string{"NOTIFY_SOCKET=" + address}, "run", "--dir", dir)
	if _ = second.Run(); second.ProcessState.ExitCode() != exitLocked || !strings.Contains(said.String(), "another keeper") {
		t.Errorf("second keeper: %v, %s", second.ProcessState, said)
	}
	n, err = manager.Read(packet)
	if got := string(packet[:n]); err != nil || got != "READY=1\nSTATUS=Another keeper serves "+dir {
		t.Errorf("the second keeper's notification is %q, %v", got, err)
	}
	if err := first.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := first.Wait(); err != nil {
		t.Errorf("end of the keeper: %v\n%s", err, stderr)
	}
}

func cgroups(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
