package keeper

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// counting prints the numbers 1 to n at full speed. Its writes end anywhere in a line.
func counting(n int) string { return fmt.Sprintf("seq 1 %d >/tmp/n; cat /tmp/n", n) }

const lots = 3_000_000

// countingBy is counting in parts. Each part waits for proceed, so that the container is alive
// whenever the test needs it.
func countingBy(parts, n int) string {
	return fmt.Sprintf("i=0; while [ $i -lt %d ]; do seq $((i*%d+1)) $((i*%d+%d)) >/tmp/n; until [ -e /tmp/go$i ]; do sleep 0.01; done; cat /tmp/n; i=$((i+1)); done",
		parts, n/parts, n/parts, n/parts)
}

// proceed lets the container print the next part, from part 0 on.
func (n *node) proceed(id string, part int) {
	n.t.Helper()
	st, err := n.client.Get(n.t.Context(), id)
	if err != nil || !st.Running {
		n.t.Fatalf("part %d: Get = %+v, %v", part, st, err)
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/root/tmp/go%d", st.Pid, part), nil, 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// Property: whichever of daemon and keeper is killed, the log contains every line once.

func TestDaemonKilledUnderLoad(t *testing.T) {
	n := newNode(t)
	a := n.args(n.newID(), spec{script: counting(lots)})
	n.create(a)
	first := n.daemon()
	n.start(a.ID)
	eventually(t, "the container writes output", func() bool { return size(a.LogPath) > 1<<20 })
	killed(t, first)
	for range 3 {
		killed(t, n.daemon())
	}
	if err := n.client.Close(); err != nil { // including the only one
		t.Fatal(err)
	}
	n.client = n.connect()
	if exit := n.exit(a.ID); exit.Code != 0 {
		t.Errorf("exit = %+v", exit)
	}
	checkCount(t, lots, a.LogPath)
}

func TestKeeperKilledUnderLoad(t *testing.T) {
	n := newNode(t)
	const kills, parts = 24, 25 // the exit must happen while a keeper runs
	a := n.args(n.newID(), spec{script: countingBy(parts, lots) + "; exit 7"})
	n.create(a)
	n.start(a.ID)
	for i := range kills {
		was := size(a.LogPath)
		n.proceed(a.ID, i)
		eventually(t, "the container writes output", func() bool { return size(a.LogPath) > was+1<<20 })
		n.killKeeper()
	}
	n.proceed(a.ID, kills)
	if exit := n.exit(a.ID); exit.Code != 7 || exit.Reason != "" {
		t.Errorf("exit = %+v", exit)
	}
	checkCount(t, lots, a.LogPath)
}

// An exit while no keeper runs is reported with its exit code, which the pidfd in the daemon
// provides.
func TestExitWithoutKeeper(t *testing.T) {
	n := newNode(t)
	for name, tc := range map[string]struct {
		script string
		want   Exit
	}{
		"code":   {"read x; exit 9", Exit{Code: 9}},
		"signal": {"read x; kill -TERM $$; sleep 100", Exit{Code: 143, Signal: 15}},
	} {
		t.Run(name, func(t *testing.T) {
			a := n.args(n.newID(), spec{script: tc.script, hostNS: true})
			a.Stdin = true
			n.create(a)
			n.start(a.ID)
			st, err := n.client.Get(t.Context(), a.ID)
			if err != nil {
				t.Fatal(err)
			}
			fd, err := unix.PidfdOpen(st.Pid, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Close(fd) }()
			at, err := n.client.Attach(t.Context(), a.ID, AttachArgs{Stdin: true})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = at.Close() }()
			// A stopped keeper cannot notice the exit; after SIGKILL it never will.
			if err := unix.Kill(n.keeperPid(), unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			n.client.mu.Lock()
			stdin := n.client.held[a.ID].fds["stdin"]
			n.client.mu.Unlock()
			if _, err := unix.Write(stdin, []byte("go\n")); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20000); err != nil {
				t.Fatal(err)
			}
			n.killKeeper()
			exit := n.exit(a.ID)
			exit.At = time.Time{}
			if exit != tc.want {
				t.Errorf("exit = %+v, want %+v", exit, tc.want)
			}
		})
	}
}

func TestExitRedelivered(t *testing.T) {
	n := newNode(t)
	id, _ := n.run(spec{script: "sleep 0.3; exit 5"})
	if err := n.client.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "exit recorded", func() bool { return size(filepath.Join(n.o.Dir, id, "exit.json")) > 0 })
	for range 2 {
		n.client = n.connect()
		if exit := n.exit(id); exit.Code != 5 {
			t.Errorf("exit = %+v", exit)
		}
		if err := n.client.Close(); err != nil {
			t.Fatal(err)
		}
	}
	n.client = n.connect()
	// The next keeper does not report the exit to the same client again.
	if exit := n.exit(id); exit.Code != 5 {
		t.Errorf("exit = %+v", exit)
	}
	n.killKeeper()
	if st, err := n.client.Get(t.Context(), id); err != nil || st.Exit == nil || st.Exit.Code != 5 {
		t.Errorf("Get = %+v, %v", st, err)
	}
	select {
	case e := <-n.client.Events():
		t.Errorf("a second event: %+v", e)
	case <-time.After(100 * time.Millisecond):
	}
}

// If daemon and keeper die, the exit is reported with a reason for the unknown code.
func TestKeeperAndDaemonDie(t *testing.T) {
	n := newNode(t)
	quick := n.args(n.newID(), spec{script: "until [ -e /tmp/end ]; do sleep 0.01; done; exit 5", hostNS: true})
	n.create(quick)
	long, _ := n.run(spec{script: "sleep 1000"})
	st, err := n.client.Get(t.Context(), quick.ID)
	if err != nil {
		t.Fatal(err)
	}
	n.start(quick.ID)
	pid := n.keeperPid()
	if err := n.client.Close(); err != nil {
		t.Fatal(err)
	}
	kill(t, pid)
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/root/tmp/end", st.Pid), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the container has ended", func() bool { return unix.Kill(st.Pid, 0) == unix.ESRCH })
	n.client = n.connect()
	if exit := n.exit(quick.ID); exit.Code != 255 || !strings.Contains(exit.Reason, "exit code unknown") {
		t.Errorf("exit = %+v", exit)
	}
	if st, err := n.client.Get(t.Context(), long); err != nil || !st.Running {
		t.Errorf("state of the running container: %+v, %v", st, err)
	}
	if err := n.client.Kill(t.Context(), long, syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if exit := n.exit(long); exit.Code != 137 {
		t.Errorf("exit of the running container = %+v", exit)
	}
}

// A stopped daemon stalls neither the log nor another daemon.
func TestHungDaemon(t *testing.T) {
	n := newNode(t)
	hung := n.daemon()
	if err := hung.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		a := n.args(n.newID(), spec{script: counting(1000)})
		n.create(a)
		n.start(a.ID)
		n.exit(a.ID)
		checkCount(t, 1000, a.LogPath)
	}
	killed(t, hung)
}

func TestHalfMadeContainerIsRemoved(t *testing.T) {
	n := newNode(t)
	slow := filepath.Join(t.TempDir(), "slow")
	if err := os.WriteFile(slow, []byte("#!/bin/sh\ncase \"$*\" in *create*) exec sleep 600;; *) exec /usr/sbin/runc \"$@\";; esac\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	a := n.args(n.newID(), spec{script: "true"})
	a.Runtime[0] = slow
	failed := make(chan error)
	go func() {
		_, err := n.client.Create(t.Context(), a)
		failed <- err
	}()
	eventually(t, "the runtime's create runs", func() bool { return size(filepath.Join(n.o.Dir, a.ID, "container.json")) > 0 })
	n.killKeeper()
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "lost") {
		t.Errorf("Create = %v", err)
	}
	if states, err := n.client.List(t.Context()); err != nil || len(states) != 0 {
		t.Errorf("List = %v, %v", states, err)
	}
}

// The keeper executes another program in place: the process remains, nothing is lost, and attached
// clients stay connected.
func TestUpgradeUnderLoad(t *testing.T) {
	n := newNode(t)
	a := n.args(n.newID(), spec{script: "read x; echo attached; " + counting(lots) + "; exit 6"})
	a.Stdin = true
	n.create(a)
	n.start(a.ID)
	ended, _ := n.run(spec{script: "exit 4"})
	if exit := n.exit(ended); exit.Code != 4 {
		t.Fatalf("exit = %+v", exit)
	}
	pid := n.keeperPid()
	n.checkProcessName(pid)
	at, err := n.client.Attach(t.Context(), a.ID, AttachArgs{Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = at.Close() }()
	other := n.copyKeeper()
	if err := n.client.Close(); err != nil {
		t.Fatal(err)
	}
	n.o.Binary = other
	n.client = n.connect()
	if _, err := at.Stdin.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the container writes output", func() bool { return size(a.LogPath) > 1<<18 })
	for range 4 {
		n.o.Binary = n.copyKeeper()
		c := n.connect()
		defer func() { _ = c.Close() }()
	}
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || exe != n.o.Binary {
		t.Errorf("keeper %d executes %s, %v; want %s", pid, exe, err, n.o.Binary)
	}
	if now := n.keeperPid(); now != pid {
		t.Errorf("keeper was %d, is %d", pid, now)
	}
	n.checkProcessName(pid)
	if exit := n.exit(ended); exit.Code != 4 {
		t.Errorf("exit reported by the new program = %+v", exit)
	}
	if exit := n.exit(a.ID); exit.Code != 6 || exit.Reason != "" {
		t.Errorf("exit = %+v", exit)
	}
	lines := readLog(t, a.LogPath)
	if len(lines) != lots+1 || lines[0].text != "attached" || lines[lots].text != fmt.Sprint(lots) {
		t.Errorf("%d lines in the log", len(lines))
	}
}

// checkProcessName checks the keeper's command name, as ps shows it.
func (n *node) checkProcessName(pid int) {
	n.t.Helper()
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil || string(name) != "mica-keeper\n" {
		n.t.Errorf("process name of keeper %d = %q, %v; want mica-keeper", pid, name, err)
	}
}

func (n *node) copyKeeper() string {
	n.t.Helper()
	from, err := os.Open(programs.keeper)
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = from.Close() }()
	to, err := os.OpenFile(filepath.Join(n.t.TempDir(), "mica-keeper"), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		n.t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		n.t.Fatal(err)
	}
	return to.Name()
}

// A program that is not a keeper does not replace the keeper.
func TestUpgradeToNonsense(t *testing.T) {
	n := newNode(t)
	id, _ := n.run(spec{script: "sleep 1000"})
	pid := n.keeperPid()
	o := n.o
	o.Binary = "/bin/true"
	c, err := Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if st, err := c.Get(t.Context(), id); err != nil || !st.Running {
		t.Errorf("Get = %+v, %v", st, err)
	}
	if now := n.keeperPid(); now != pid {
		t.Errorf("keeper was %d, is %d", pid, now)
	}
}
