package keeper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/patience"
)

// built are the programs that TestMain builds. A test binary that runs itself acts as a daemon
// instead.
type built struct{ dir, keeper, init string }

var programs built

const roleVariable = "MICA_KEEPER_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) == "daemon" {
		fakeDaemon()
		return
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run() // tests that need the programs are skipped
	}
	dir, err := os.MkdirTemp("", "mica-keeper-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	programs = built{dir, filepath.Join(dir, "mica-keeper"), filepath.Join(dir, "mica-init")}
	for _, args := range [][]string{
		{"go", "build", raceFlag, "-trimpath", "-ldflags=-s -w", "-o", programs.keeper, "../../cmd/mica-keeper"},
		{"cc", "-Os", "-static", "-nostdlib", "-o", programs.init, "../../cmd/mica-init/init.c"},
		{"mkdir", "-p", filepath.Join(dir, "rootfs/bin"), filepath.Join(dir, "rootfs/proc"), filepath.Join(dir, "rootfs/dev"), filepath.Join(dir, "rootfs/tmp")},
		{"cp", "/bin/busybox", filepath.Join(dir, "rootfs/bin/busybox")},
		{"ln", "-s", "busybox", filepath.Join(dir, "rootfs/bin/sh")},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %v\n%s", args, err, out)
			return 1
		}
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// node is the keeper of one test, with its directories and client.
type node struct {
	t      *testing.T
	o      Options
	client *Client
	root   string // the OCI runtime's
	cgroup string
	count  int
	waits  []func() // functions to call when the keeper ends
}

var nodes atomic.Int32

func newNode(t *testing.T) *node {
	t.Helper()
	return newNodeAfter(t, func(*node) {})
}

// newNodeAfter is newNode, but calls before ahead of connecting.
func newNodeAfter(t *testing.T, prepare func(*node)) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: runs containers")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("needs runc")
	}
	n := &node{
		t: t, o: Options{Dir: filepath.Join(t.TempDir(), "keeper"), Binary: programs.keeper}, root: t.TempDir(),
		cgroup: fmt.Sprintf("/mica-keeper-test-%d-%d", os.Getpid(), nodes.Add(1)),
	}
	fds := openFDs(t)
	prepare(n)
	n.client = n.connect()
	t.Cleanup(func() {
		n.stop()
		for _, wait := range n.waits {
			wait()
		}
		if now := openFDs(t); now > fds {
			t.Errorf("the daemon leaks descriptors: %d before, %d after", fds, now)
		}
	})
	return n
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		// The Go runtime opens these at first use.
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); !strings.Contains(to, "anon_inode:[event") && !strings.Contains(to, "/dev/null") {
			n++
		}
	}
	return n
}

func (n *node) connect() *Client {
	n.t.Helper()
	c, err := Connect(n.t.Context(), n.o)
	if err != nil {
		n.t.Fatalf("Connect: %v\n%s", err, n.keeperLog())
	}
	return c
}

func (n *node) keeperLog() string {
	data, _ := os.ReadFile(filepath.Join(n.o.Dir, "keeper.log"))
	return string(data)
}

// stop deletes the test's containers, ends the keeper and checks for leftovers.
func (n *node) stop() {
	t := n.t
	ctx, cancel := context.WithTimeout(context.Background(), wait())
	defer cancel()
	states, err := n.client.List(ctx)
	if err != nil {
		t.Errorf("List: %v\n%s", err, n.keeperLog())
	}
	for _, s := range states {
		if err := n.client.Delete(ctx, s.ID); err != nil {
			t.Errorf("Delete(%s): %v", s.ID, err)
		}
	}
	if err := n.client.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := n.client.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	for _, glob := range []string{"/sys/fs/cgroup/*" + n.cgroup + "/*/cgroup.procs", "/sys/fs/cgroup" + n.cgroup + "/*/cgroup.procs"} {
		if left, _ := filepath.Glob(glob); len(left) > 0 {
			t.Errorf("leftover cgroups: %v", left)
		}
	}
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + n.cgroup)
	for _, dir := range append(dirs, "/sys/fs/cgroup"+n.cgroup) {
		_ = unix.Rmdir(dir)
	}
	entries, _ := os.ReadDir(n.o.Dir)
	for _, e := range entries {
		if e.Name() != "lock" && e.Name() != "keeper.log" {
			t.Errorf("leftover in the keeper's directory: %s", e.Name())
		}
	}
	if log := n.keeperLog(); strings.Contains(log, "DATA RACE") || strings.Contains(log, "panic") {
		t.Error("data race or panic in the keeper")
	}
	if t.Failed() {
		t.Logf("keeper.log:\n%s", n.keeperLog())
	}
}

// keeperPid returns the process ID of the keeper that serves the node.
func (n *node) keeperPid() int {
	n.t.Helper()
	l, err := n.client.current(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return l.hello.Pid
}

// killKeeper kills the keeper and waits until it has ended.
func (n *node) killKeeper() {
	n.t.Helper()
	kill(n.t, n.keeperPid())
}

// kill kills a process, which may be another's child, and waits until it has ended.
func kill(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); err != unix.EINTR {
			return
		}
	}
}

type spec struct {
	script string
	tty    bool
	memory int64
	hostNS bool   // a PID namespace would hide the container's process IDs
	hook   string // a script that the runtime runs between start and the container's program
}

// bundle writes an OCI bundle that runs a shell script.
func (n *node) bundle(id string, s spec) string {
	n.t.Helper()
	dir := filepath.Join(n.t.TempDir(), id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	namespaces := []map[string]string{{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}}
	if !s.hostNS {
		namespaces = append(namespaces, map[string]string{"type": "pid"})
	}
	mounts := []map[string]any{
		{"destination": "/proc", "type": "proc", "source": "proc"},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
		{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
		{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
	}
	linux := map[string]any{"namespaces": namespaces, "cgroupsPath": n.cgroup + "/" + id}
	if s.memory > 0 {
		linux["resources"] = map[string]any{"memory": map[string]any{"limit": s.memory}}
	}
	config := map[string]any{
		"ociVersion": "1.0.2", "linux": linux, "mounts": mounts, "hostname": "test",
		"root": map[string]any{"path": filepath.Join(programs.dir, "rootfs"), "readonly": true},
		"process": map[string]any{
			"terminal": s.tty, "cwd": "/", "user": map[string]int{"uid": 0, "gid": 0}, "noNewPrivileges": true,
			"args": []string{"/bin/busybox", "sh", "-c", s.script}, "env": []string{"PATH=/bin"},
		},
	}
	if s.hook != "" {
		hook := map[string]any{"path": "/bin/busybox", "args": []string{"busybox", "sh", "-c", s.hook}}
		config["hooks"] = map[string]any{"startContainer": []any{hook}}
	}
	data, err := json.Marshal(config)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o644); err != nil {
		n.t.Fatal(err)
	}
	return dir
}

func (n *node) newID() string {
	n.count++
	return fmt.Sprintf("%s-%064x", "c", n.count)[2:]
}

func (n *node) args(id string, s spec) CreateArgs {
	return CreateArgs{
		ID: id, Runtime: []string{"/usr/sbin/runc", "--root", n.root}, Bundle: n.bundle(id, s),
		Terminal: s.tty, LogPath: filepath.Join(n.t.TempDir(), id+".log"), Timeout: 30 * time.Second,
	}
}

// create makes a container, or fails the test.
func (n *node) create(a CreateArgs) string {
	n.t.Helper()
	if _, err := n.client.Create(n.t.Context(), a); err != nil {
		n.t.Fatalf("Create: %v\n%s", err, n.keeperLog())
	}
	return a.ID
}

func (n *node) start(id string) {
	n.t.Helper()
	if err := n.client.Start(n.t.Context(), id); err != nil {
		n.t.Fatalf("Start: %v\n%s", err, n.keeperLog())
	}
}

// run creates and starts a container for script and returns its ID and log.
func (n *node) run(s spec) (id, logPath string) {
	n.t.Helper()
	a := n.args(n.newID(), s)
	n.create(a)
	n.start(a.ID)
	return a.ID, a.LogPath
}

// exit waits for the exit event of a container.
func (n *node) exit(id string) Exit {
	n.t.Helper()
	timeout := time.After(wait())
	for {
		select {
		case e, ok := <-n.client.Events():
			if !ok {
				n.t.Fatalf("events ended before the exit of %s", id)
			}
			if e.ID == id {
				return e.Exit
			}
			n.t.Logf("event of another container: %s", e.ID)
		case <-timeout:
			n.t.Fatalf("no exit event of %s\n%s", id, n.keeperLog())
		}
	}
}

// logLine is one line of a CRI log.
type logLine struct {
	stream, tag, text string
}

// readLog parses a CRI log and fails the test at any violation of the format.
func readLog(t *testing.T, path string) []logLine {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var lines []logLine
	r := bufio.NewReaderSize(f, 1<<20)
	last := ""
	for {
		raw, err := r.ReadString('\n')
		if raw == "" && err != nil {
			return lines
		}
		if err != nil {
			t.Fatalf("log %s ends within a line: %.100q", path, raw)
		}
		parts := strings.SplitN(strings.TrimSuffix(raw, "\n"), " ", 4)
		if len(parts) != 4 {
			t.Fatalf("line %d of %s: %.100q", len(lines)+1, path, raw)
		}
		// Lines of one batch have the same time. Parsing each would take longer than writing the
		// line.
		if parts[0] == last {
			// already parsed
		} else if _, err := time.Parse(time.RFC3339Nano, parts[0]); err != nil {
			t.Fatalf("line %d of %s: %v", len(lines)+1, path, err)
		}
		last = parts[0]
		lines = append(lines, logLine{parts[1], parts[2], parts[3]})
	}
}

// checkCount fails the test unless the logs together contain the numbers 1 to max in order, each
// once.
func checkCount(t *testing.T, max int, paths ...string) {
	t.Helper()
	next := 1
	for _, path := range paths {
		for i, l := range readLog(t, path) {
			if l.tag != "F" || l.text != strconv.Itoa(next) {
				t.Fatalf("line %d of %s: %+v, want %d", i+1, path, l, next)
			}
			next++
		}
	}
	if next != max+1 {
		t.Fatalf("log ends at %d, want %d", next-1, max)
	}
}

// wait bounds what has no time limit of its own, so that a hanging test ends.
func wait() time.Duration { return patience.Of(3 * time.Minute) }

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(wait()); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

func size(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// fakeDaemon connects to the keeper like micad and waits until it is killed.
func fakeDaemon() {
	c, err := Connect(context.Background(), Options{Dir: os.Args[1], Binary: os.Args[2]})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("connected")
	for e := range c.Events() {
		fmt.Println("exit", e.ID)
	}
}

// daemon starts a process that connects to the node's keeper.
func (n *node) daemon() *exec.Cmd {
	n.t.Helper()
	cmd := exec.Command("/proc/self/exe", n.o.Dir, n.o.Binary)
	cmd.Env = append(os.Environ(), roleVariable+"=daemon")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "connected\n" {
		n.t.Fatalf("daemon prints %q, %v", line, err)
	}
	return cmd
}

func runCommand(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

func killed(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		t.Fatalf("kill daemon: %v", err)
	}
}
