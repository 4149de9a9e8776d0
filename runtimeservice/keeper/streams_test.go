package keeper

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func (n *node) attach(id string, a AttachArgs) *Attachment {
	n.t.Helper()
	at, err := n.client.Attach(n.t.Context(), id, a)
	if err != nil {
		n.t.Fatalf("Attach: %v", err)
	}
	n.t.Cleanup(func() { _ = at.Close() })
	return at
}

func readAll(t *testing.T, r io.ReadCloser) string {
	t.Helper()
	_ = r.(*os.File).SetReadDeadline(time.Now().Add(wait()))
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read attached stream: %v", err)
	}
	return string(data)
}

func TestAttach(t *testing.T) {
	n := newNode(t)
	a := n.args(n.newID(), spec{script: "read x; echo out $x; echo err $x >&2; read y; echo $y"})
	a.Stdin = true
	n.create(a)
	n.start(a.ID)
	all := n.attach(a.ID, AttachArgs{Stdin: true, Stdout: true, Stderr: true})
	second := n.attach(a.ID, AttachArgs{Stdout: true})
	if second.Stdin != nil || second.Stderr != nil {
		t.Error("Attach returns streams that were not requested")
	}
	if _, err := io.WriteString(all.Stdin, "one\n"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(all.Stdout).ReadString('\n')
	if err != nil || line != "out one\n" {
		t.Fatalf("stdout: %q, %v", line, err)
	}
	if line, err := bufio.NewReader(all.Stderr).ReadString('\n'); err != nil || line != "err one\n" {
		t.Fatalf("stderr: %q, %v", line, err)
	}
	// Without StdinOnce, stdin remains open for the next client.
	if err := all.Close(); err != nil {
		t.Fatal(err)
	}
	third := n.attach(a.ID, AttachArgs{Stdin: true, Stderr: true})
	if _, err := io.WriteString(third.Stdin, "two\n"); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, second.Stdout); got != "out one\ntwo\n" {
		t.Errorf("second client: %q", got)
	}
	if got := readAll(t, third.Stderr); got != "" {
		t.Errorf("third client: %q", got)
	}
	if exit := n.exit(a.ID); exit.Code != 0 {
		t.Errorf("exit = %+v", exit)
	}
	if _, err := n.client.Attach(t.Context(), a.ID, AttachArgs{Stdout: true}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Attach after exit: %v", err)
	}
}

func TestStdinOnce(t *testing.T) {
	n := newNode(t)
	a := n.args(n.newID(), spec{script: "cat; echo end"})
	a.Stdin, a.StdinOnce = true, true
	n.create(a)
	n.start(a.ID)
	big := bytes.Repeat([]byte("0123456789abcde\n"), 64<<10) // more than the pipes in between can hold
	at := n.attach(a.ID, AttachArgs{Stdin: true})
	if _, err := at.Stdin.Write(big); err != nil {
		t.Fatal(err)
	}
	if err := at.Close(); err != nil {
		t.Fatal(err)
	}
	if exit := n.exit(a.ID); exit.Code != 0 {
		t.Errorf("exit = %+v", exit)
	}
	lines := readLog(t, a.LogPath)
	if len(lines) != 64<<10+1 || lines[len(lines)-1].text != "end" {
		t.Errorf("%d lines, the last %+v", len(lines), lines[len(lines)-1])
	}
}

func TestNoStdin(t *testing.T) {
	n := newNode(t)
	id, log := n.run(spec{script: "cat; readlink /proc/self/fd/0; sleep 100"})
	eventually(t, "the container has read its stdin", func() bool { return len(readLog(t, log)) == 1 })
	if lines := readLog(t, log); lines[0].text != "/dev/null" {
		t.Errorf("stdin is %q", lines[0].text)
	}
	if at := n.attach(id, AttachArgs{Stdin: true, Stdout: true}); at.Stdin != nil {
		t.Error("an attachment has stdin")
	}
}

func TestTerminal(t *testing.T) {
	n := newNode(t)
	a := n.args(n.newID(), spec{script: `tty -s && echo terminal; read x; echo "size $(stty size)"; read x; exit 2`, tty: true})
	n.create(a)
	at := n.attach(a.ID, AttachArgs{Stdin: true, Stdout: true, Stderr: true})
	if at.Stderr != nil {
		t.Error("a terminal has stderr")
	}
	n.start(a.ID)
	out := bufio.NewReader(at.Stdout)
	if line, err := out.ReadString('\n'); err != nil || line != "terminal\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := n.client.Resize(t.Context(), a.ID, 123, 45); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(at.Stdin, "\n"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\r\n", "size 45 123\r\n"} {
		if line, err := out.ReadString('\n'); err != nil || line != want {
			t.Fatalf("%q, %v, want %q", line, err, want)
		}
	}
	n.killKeeper() // the terminal survives the keeper's death too
	at = n.attach(a.ID, AttachArgs{Stdin: true, Stdout: true})
	if _, err := io.WriteString(at.Stdin, "\n"); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, at.Stdout); got != "\r\n" {
		t.Errorf("after the keeper's death: %q", got)
	}
	if exit := n.exit(a.ID); exit.Code != 2 {
		t.Errorf("exit = %+v", exit)
	}
	var texts []string
	for _, l := range readLog(t, a.LogPath) {
		texts = append(texts, l.stream+" "+l.text)
	}
	if got := strings.Join(texts, "|"); got != "stdout terminal\r|stdout \r|stdout size 45 123\r|stdout \r" {
		t.Errorf("log: %q", got)
	}
	id, _ := n.run(spec{script: "sleep 100"})
	if err := n.client.Resize(t.Context(), id, 1, 1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Resize without terminal: %v", err)
	}
}

// A client that does not read loses its stream; the log is complete.
func TestSlowClient(t *testing.T) {
	n := newNode(t)
	a := n.args(n.newID(), spec{script: counting(lots / 5)})
	n.create(a)
	slow := n.attach(a.ID, AttachArgs{Stdout: true})
	n.start(a.ID)
	if exit := n.exit(a.ID); exit.Code != 0 {
		t.Errorf("exit = %+v", exit)
	}
	checkCount(t, lots/5, a.LogPath)
	got := readAll(t, slow.Stdout)
	if len(got) == 0 || len(got) > 2<<20 || !strings.HasPrefix(got, "1\n2\n3\n") {
		t.Errorf("the slow client got %d bytes", len(got))
	}
}

func TestReopenUnderLoad(t *testing.T) {
	n := newNode(t)
	const times = 10
	a := n.args(n.newID(), spec{script: countingBy(times, lots)})
	n.create(a)
	n.start(a.ID)
	var paths []string
	for i := range times {
		n.proceed(a.ID, i)
		eventually(t, "the container writes output", func() bool { return size(a.LogPath) > 1<<20 })
		old := fmt.Sprintf("%s.%d", a.LogPath, i)
		if err := os.Rename(a.LogPath, old); err != nil {
			t.Fatal(err)
		}
		if err := n.client.ReopenLog(t.Context(), a.ID); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, old)
		if i == 5 {
			n.killKeeper()
		}
	}
	n.exit(a.ID)
	checkCount(t, lots, append(paths, a.LogPath)...)
}

func TestReopenFails(t *testing.T) {
	n := newNode(t)
	a := n.args(n.newID(), spec{script: "read x; echo $x; sleep 100"})
	a.Stdin = true
	dir := filepath.Join(t.TempDir(), "logs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	a.LogPath = filepath.Join(dir, "log")
	n.create(a)
	n.start(a.ID)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := n.client.ReopenLog(t.Context(), a.ID); err == nil {
		t.Error("ReopenLog succeeds without the log directory")
	}
	if _, err := io.WriteString(n.attach(a.ID, AttachArgs{Stdin: true}).Stdin, "still\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old log grows", func() bool { return size(dir+".away/log") > 0 })
}

// A full disk neither stalls nor ends the container. The log has whole lines only, and continues
// once there is space again.
func TestLogDiskFull(t *testing.T) {
	n := newNode(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	a := n.args(n.newID(), spec{script: counting(100_000) + "; echo written >&2; read x; echo again; exit 3"})
	a.Stdin = true
	a.LogPath = filepath.Join(dir, "log")
	n.create(a)
	at := n.attach(a.ID, AttachArgs{Stdin: true, Stderr: true})
	n.start(a.ID)
	if line, err := bufio.NewReader(at.Stderr).ReadString('\n'); err != nil || line != "written\n" {
		t.Fatalf("%q, %v", line, err)
	}
	// Until then, the keeper may be writing part of a line, which it takes back.
	if err := n.client.Flush(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	lines := readLog(t, a.LogPath)
	if len(lines) == 0 || len(lines) > 90_000 {
		t.Fatalf("%d lines: the disk was not full", len(lines))
	}
	for i, l := range lines {
		if l.stream == "stdout" && l.text != fmt.Sprint(i+1) {
			t.Fatalf("line %d: %+v", i+1, l)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(at.Stdin, "\n"); err != nil {
		t.Fatal(err)
	}
	if exit := n.exit(a.ID); exit.Code != 3 {
		t.Errorf("exit = %+v", exit)
	}
	lines = readLog(t, a.LogPath)
	if last := lines[len(lines)-1]; last != (logLine{"stdout", "F", "again"}) {
		t.Errorf("last line: %+v", last)
	}
	if got := strings.Count(n.keeperLog(), "write log"); got != 1 {
		t.Errorf("the failure is reported %d times", got)
	}
}

func TestLongLine(t *testing.T) {
	n := newNode(t)
	id, log := n.run(spec{script: "dd if=/dev/zero bs=40000 count=1 2>/dev/null | tr '\\0' x; echo; echo next"})
	n.exit(id)
	lines := readLog(t, log)
	want := []struct {
		tag  string
		size int
	}{{"P", 16384}, {"P", 16384}, {"F", 40000 - 2*16384}, {"F", 4}}
	if len(lines) != len(want) {
		t.Fatalf("%d lines", len(lines))
	}
	for i, w := range want {
		if lines[i].tag != w.tag || len(lines[i].text) != w.size {
			t.Errorf("line %d: %s %d bytes, want %+v", i, lines[i].tag, len(lines[i].text), w)
		}
	}
}

func TestInit(t *testing.T) {
	n := newNode(t)
	id := n.newID()
	pin := filepath.Join(t.TempDir(), "pid")
	if err := os.WriteFile(pin, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cgroups := []string{}
	for _, c := range []string{"memory", "pids"} {
		dir := "/sys/fs/cgroup/" + c + n.cgroup
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Skipf("needs cgroup v1: %v", err)
		}
		cgroups = append(cgroups, dir+"/cgroup.procs")
	}
	pid, err := n.client.StartInit(t.Context(), InitArgs{ID: id, PIDNSPin: pin, Binary: programs.init, CgroupProcs: cgroups})
	if err != nil {
		t.Fatalf("%v\n%s", err, n.keeperLog())
	}
	defer func() { _ = unix.Unmount(pin, unix.MNT_DETACH) }()
	var ns, mine unix.Stat_t
	if err := unix.Stat(pin, &ns); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat("/proc/self/ns/pid", &mine); err != nil || ns.Ino == mine.Ino {
		t.Errorf("the pin is not a new namespace: %v", err)
	}
	proc := fmt.Sprintf("/proc/%d/", pid)
	if entries, err := os.ReadDir(proc + "root"); err != nil || len(entries) != 0 {
		t.Errorf("init's root: %v, %v", entries, err)
	}
	if entries, err := os.ReadDir(proc + "fd"); err != nil || len(entries) != 0 {
		t.Errorf("init's descriptors: %v, %v", entries, err)
	}
	status, _ := os.ReadFile(proc + "status")
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534\n", "CapEff:\t0000000000000000\n", "NSpid:\t" + fmt.Sprint(pid) + "\t1\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status lacks %q:\n%s", want, status)
		}
	}
	if data, _ := os.ReadFile(proc + "cgroup"); !strings.Contains(string(data), "memory:"+n.cgroup) {
		t.Errorf("cgroups: %s", data)
	}
	// mica-init reaps processes that join its namespace, and ends at SIGTERM, also with the next
	// keeper.
	n.reapsInside(pin, pid)
	n.killKeeper()
	if err := n.client.Kill(t.Context(), id, syscall.SIGTERM, false); err != nil {
		t.Fatal(err)
	}
	if exit := n.exit(id); exit.Code != 0 || exit.Reason != "" {
		t.Errorf("exit = %+v", exit)
	}
}

// reapsInside runs a shell in the PID namespace that leaves an orphan. It waits until only the init
// remains.
func (n *node) reapsInside(pin string, pid int) {
	n.t.Helper()
	out, err := runCommand("nsenter", "--pid="+pin, "/bin/busybox", "sh", "-c", "(sleep 0.2; exit 3) >/dev/null 2>&1 &")
	if err != nil {
		n.t.Fatalf("%v: %s", err, out)
	}
	eventually(n.t, "the orphan is reaped", func() bool {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		return err == nil && len(bytes.TrimSpace(data)) == 0
	})
}

// The init of a pod with a user namespace runs in that namespace, and its PID namespace belongs to
// it. Otherwise it behaves like any init.
func TestInitInUserNamespace(t *testing.T) {
	n := newNode(t)
	hold := exec.Command(programs.init, "hold")
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 70000, Size: 65536}}
	hold.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET, UidMappings: maps, GidMappings: maps, GidMappingsEnableSetgroups: true,
	}
	stdin, err := hold.StdinPipe()
	if err == nil {
		err = hold.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	pin := filepath.Join(t.TempDir(), "pid")
	if err := os.WriteFile(pin, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	from := fmt.Sprintf("/proc/%d/ns/", hold.Process.Pid)
	id := n.newID()
	pid, err := n.client.StartInit(t.Context(), InitArgs{ID: id, UserNS: from + "user", NetNS: from + "net", PIDNSPin: pin, Binary: programs.init})
	if err != nil {
		t.Fatalf("%v\n%s", err, n.keeperLog())
	}
	defer func() { _ = unix.Unmount(pin, unix.MNT_DETACH) }()
	proc := fmt.Sprintf("/proc/%d/", pid)
	for _, name := range []string{"user", "net"} {
		want, err := os.Readlink(from + name)
		if got, gotErr := os.Readlink(proc + "ns/" + name); err != nil || got != want {
			t.Errorf("init is in %s (%v), want %s (%v)", got, gotErr, want, err)
		}
	}
	if err := errors.Join(stdin.Close(), hold.Wait()); err != nil {
		t.Errorf("end of the holder: %v", err)
	}
	if entries, err := os.ReadDir(proc + "root"); err != nil || len(entries) != 0 {
		t.Errorf("init's root: %v, %v", entries, err)
	}
	status, _ := os.ReadFile(proc + "status")
	for _, want := range []string{"Uid:\t135534\t135534\t135534\t135534\n", "CapEff:\t0000000000000000\n", "NSpid:\t" + fmt.Sprint(pid) + "\t1\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status lacks %q:\n%s", want, status)
		}
	}
	n.reapsInside(pin, pid)
	if err := n.client.Kill(t.Context(), id, syscall.SIGTERM, false); err != nil {
		t.Fatal(err)
	}
	if exit := n.exit(id); exit.Code != 0 || exit.Reason != "" {
		t.Errorf("exit = %+v", exit)
	}
}

func TestInitFails(t *testing.T) {
	n := newNode(t)
	for name, a := range map[string]InitArgs{
		"no binary":    {Binary: "/nonexistent"},
		"not an init":  {Binary: "/bin/true"},
		"no namespace": {Binary: programs.init, NetNS: "/nonexistent"},
		"no user ns":   {Binary: programs.init, UserNS: "/nonexistent"},
		"not a ns":     {Binary: programs.init, UserNS: "/bin/true"},
		"no pin":       {Binary: programs.init, PIDNSPin: "/nonexistent"},
		"no cgroup":    {Binary: programs.init, CgroupProcs: []string{"/nonexistent/cgroup.procs"}},
	} {
		t.Run(name, func(t *testing.T) {
			a.ID = n.newID()
			if _, err := n.client.StartInit(t.Context(), a); err == nil {
				t.Error("succeeds")
			}
		})
	}
	if states, err := n.client.List(t.Context()); err != nil || len(states) != 0 {
		t.Errorf("List = %v, %v", states, err)
	}
}

func TestClosedClient(t *testing.T) {
	n := newNode(t)
	c := n.connect()
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	if _, ok := <-c.Events(); ok {
		t.Error("Events is open after Close")
	}
	if _, err := c.List(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("List after Close: %v", err)
	}
}
