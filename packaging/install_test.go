package packaging

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// root is a separate root file system: an overlay in memory over this machine's.
type root struct {
	t   *testing.T
	dir string
}

func newRoot(t *testing.T) root {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	memory, dir := t.TempDir(), t.TempDir()
	mount := func(source, target, kind, data string) {
		t.Helper()
		if err := unix.Mount(source, target, kind, 0, data); err != nil {
			t.Fatalf("mount %s: %v", target, err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", target, err)
			}
		})
	}
	mount("tmpfs", memory, "tmpfs", "")
	upper, work := filepath.Join(memory, "upper"), filepath.Join(memory, "work")
	if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
		t.Fatal(err)
	}
	mount("overlay", dir, "overlay", "lowerdir=/,upperdir="+upper+",workdir="+work)
	// The test must not see an installation on this machine.
	for _, path := range []string{"etc/mica", "var/lib/mica"} {
		if err := os.RemoveAll(filepath.Join(dir, path)); err != nil {
			t.Fatal(err)
		}
	}
	return root{t, dir}
}

// file returns the path of a file in the root, as seen from this machine.
func (r root) file(path string) string { return filepath.Join(r.dir, path) }

func (r root) exists(path string) bool {
	_, err := os.Lstat(r.file(path))
	return err == nil
}

// copy copies a package into the root and returns its path there.
func (r root) copy(path string) string {
	r.t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(r.file("/"+filepath.Base(path)), data, 0o644)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return "/" + filepath.Base(path)
}

// dpkg runs dpkg such that it installs all files of a package, including those that small images
// omit.
func dpkg(run func(...string) string, args ...string) {
	run(append([]string{"dpkg", "--path-include=/usr/share/*", "--force-confold", "--force-unsafe-io"}, args...)...)
}

// Without systemd: the package is unpacked and configured, and its programs run. An upgrade keeps a
// changed configuration. A removal keeps configuration and data, and a purge removes everything.
func TestInstall(t *testing.T) {
	need(t, "dpkg")
	r := newRoot(t)
	if err := unix.Mount("proc", r.file("proc"), "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(r.file("proc"), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "/usr/bin/env", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: r.dir}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	dpkg(run, "-i", r.copy(deb(t, "1.0")))
	for _, args := range [][]string{{"mica", "version"}, {"mica", "config", "check"}, {"mica", "config", "dump"}, {"micad", "--version"}, {"mica-keeper", "version"}} {
		if run(args...) == "" && args[len(args)-1] != "check" {
			t.Errorf("%v says nothing", args)
		}
	}
	changed := "[log]\nlevel = 3\n"
	for file, text := range map[string]string{"/etc/mica/config.toml": changed, "/var/lib/mica/kept": "x", "/etc/mica/certs.d/mine": "x"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(r.file(file)), 0o755), os.WriteFile(r.file(file), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	dpkg(run, "-i", r.copy(deb(t, "1.1")))
	if got := read(t, r.file("/etc/mica/config.toml")); got != changed {
		t.Errorf("the upgrade replaced the configuration by %s", got)
	}
	run("dpkg", "--remove", "mica")
	if r.exists("/usr/bin/micad") || !r.exists("/etc/mica/config.toml") || !r.exists("/var/lib/mica/kept") {
		t.Error("the removal left a program, or removed configuration or data")
	}
	run("dpkg", "--purge", "mica")
	if r.exists("/etc/mica/config.toml") || r.exists("/var/lib/mica") {
		t.Error("the purge left configuration or data")
	}
	if !r.exists("/etc/mica/certs.d/mine") {
		t.Error("the purge removed the administrator's file")
	}
}

// machine is a root file system in which systemd is process 1.
type machine struct {
	root
	leader int // its process 1, as seen from this machine
}

const patience = 2 * time.Minute

// boot starts systemd in a container with the services of basic.target only, in separate network
// and cgroup namespaces.
func boot(t *testing.T) machine {
	t.Helper()
	need(t, "systemd-nspawn", "nsenter", "runc")
	r := newRoot(t)
	// The container must not have this machine's identity. Images of build machines may forbid
	// packages to start services.
	for _, path := range []string{"/etc/machine-id", "/usr/sbin/policy-rc.d"} {
		if err := os.RemoveAll(r.file(path)); err != nil {
			t.Fatal(err)
		}
	}
	groups := ownCgroups(t)
	var script strings.Builder
	for _, dir := range groups {
		fmt.Fprintf(&script, "echo $$ > %s/cgroup.procs; ", dir)
	}
	script.WriteString(`exec systemd-nspawn --quiet --register=no --keep-unit --private-network --capability=all --link-journal=no --system-call-filter="@keyring bpf" \
		--tmpfs=/var/lib/mica --directory "$0" --boot systemd.unit=basic.target`)
	log, err := os.Create(filepath.Join(t.TempDir(), "console"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	cmd := exec.Command("sh", "-c", script.String(), r.dir)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m := machine{root: r}
	t.Cleanup(func() {
		if m.leader != 0 {
			_ = unix.Kill(m.leader, unix.SIGKILL)
		} else {
			_ = cmd.Process.Kill()
		}
		_ = cmd.Wait()
	})
	m.await("systemd-nspawn starts process 1", func() bool {
		m.leader = childNamed(cmd.Process.Pid, "systemd")
		return m.leader != 0
	})
	m.await("systemd is up", func() bool {
		_, err := m.try("systemctl", "is-active", "basic.target")
		return err == nil
	})
	// These mounts are read-only in a container.
	m.run("sh", "-c", "mount -o remount,rw /sys/fs/cgroup; for d in /sys/fs/cgroup/*/; do mount -o remount,rw,bind $d || true; done; mount -o remount,rw,bind /proc/sys || true")
	return m
}

// ownCgroups makes a cgroup for the test in each hierarchy that systemd uses.
func ownCgroups(t *testing.T) []string {
	t.Helper()
	var dirs []string
	for _, base := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(base, "cgroup.procs")); err != nil {
			continue
		}
		dir := filepath.Join(base, fmt.Sprintf("mica-packaging-%d", os.Getpid()))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
		t.Cleanup(func() { awaitRemoval(t, dir) })
	}
	return dirs
}

// awaitRemoval removes a cgroup as soon as its processes have exited.
func awaitRemoval(t *testing.T, dir string) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = removeCgroups(dir); err == nil {
			return
		}
	}
	t.Errorf("cgroups stay: %v", err)
}

func removeCgroups(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeCgroups(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(err, unix.Rmdir(dir))
}

// childNamed returns a descendant of pid that is process 1 of its PID namespace.
func childNamed(pid int, name string) int {
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for field := range strings.FieldsSeq(string(children)) {
		var child int
		if _, err := fmt.Sscan(field, &child); err != nil {
			continue
		}
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", child))
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", child))
		for line := range strings.Lines(string(status)) {
			pids := strings.Fields(line)
			if len(pids) > 1 && pids[0] == "NSpid:" && pids[len(pids)-1] == "1" && strings.TrimSpace(string(comm)) == name {
				return child
			}
		}
		if found := childNamed(child, name); found != 0 {
			return found
		}
	}
	return 0
}

func (m machine) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	enter := []string{"--target", fmt.Sprint(m.leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (m machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s\n%s", strings.Join(args, " "), err, out, m.state())
	}
	return out
}

// state describes the services for a failure message.
func (m machine) state() string {
	if m.leader == 0 {
		return "systemd has not started"
	}
	units, _ := m.try("systemctl", "status", "--no-pager", "micad", "mica-keeper")
	log, _ := m.try("journalctl", "--no-pager", "-n", "40", "-u", "micad", "-u", "mica-keeper")
	return units + "\n" + log
}

func (m machine) await(what string, condition func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.t.Fatalf("waited in vain: %s\n%s", what, m.state())
		}
	}
}

// property returns a property of a unit.
func (m machine) property(unit, name string) string {
	m.t.Helper()
	return m.run("systemctl", "show", "--value", "--property", name, unit)
}
