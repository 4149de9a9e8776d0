package keeper

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// lowestFree returns the lowest free descriptor number of the process.
func lowestFree(t *testing.T, pid int) uint64 {
	t.Helper()
	for n := uint64(0); ; n++ {
		if _, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, n)); os.IsNotExist(err) {
			return n
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// limitDescriptors lowers the soft limit of the process so that free descriptors remain. raise
// restores it.
func limitDescriptors(t *testing.T, pid, free int) (raise func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old); err != nil {
		t.Fatal(err)
	}
	if old.Cur != old.Max {
		t.Errorf("process %d has soft limit %d, below its hard limit %d", pid, old.Cur, old.Max)
	}
	low := unix.Rlimit{Cur: lowestFree(t, pid) + uint64(free), Max: old.Max}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &low, nil); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &old, nil); err != nil && err != unix.ESRCH {
			t.Fatal(err)
		}
	}
}

// sameLink fails the test unless the client still uses connection l.
func (n *node) sameLink(l *link) {
	n.t.Helper()
	if now, err := n.client.current(n.t.Context()); err != nil || now != l {
		n.t.Fatalf("the connection to the keeper was lost: %v\n%s", err, n.keeperLog())
	}
}

// exhausted fails the test unless err is ResourceExhausted and names the limit of process.
func exhausted(t *testing.T, err error, process string) {
	t.Helper()
	if !errdefs.IsResourceExhausted(err) {
		t.Fatalf("error = %v, want ResourceExhausted", err)
	}
	for _, part := range []string{"too many open files", process, "LimitNOFILE", "descriptors open"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not contain %q", err, part)
		}
	}
}

// talker runs a container that prints "one", and "two" after a line of input. It returns the
// container's log and its stdin.
func (n *node) talker() (id, logPath string, input io.Writer) {
	n.t.Helper()
	a := n.args(n.newID(), spec{script: "echo one; read x; echo two; exit 7"})
	a.Stdin = true
	n.create(a)
	n.start(a.ID)
	eventually(n.t, "the first line", func() bool { return size(a.LogPath) > 0 })
	return a.ID, a.LogPath, n.attach(a.ID, AttachArgs{Stdin: true}).Stdin
}

func TestKeeperWithoutDescriptorsNamesItsLimit(t *testing.T) {
	n := newNode(t)
	n.talker()
	l, err := n.client.current(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pid := n.keeperPid()
	process := fmt.Sprintf("mica-keeper (process %d)", pid)
	const most = 40 // more than a Create needs
	before, refused := descriptors(t, pid), 0
	for free := range most {
		a := n.args(n.newID(), spec{script: "true", tty: free%2 == 1})
		raise := limitDescriptors(t, pid, free)
		_, err := n.client.Create(t.Context(), a)
		n.sameLink(l)
		if err == nil {
			raise()
			break
		}
		exhausted(t, err, process)
		refused++
		for _, left := range []string{filepath.Join(n.root, a.ID), filepath.Join(n.o.Dir, a.ID)} {
			if size(left) > 0 {
				t.Errorf("with %d free descriptors, a failed Create leaves %s", free, left)
			}
		}
		raise()
		// The keeper may close some after its answer, also some that were open at the first count.
		eventually(t, fmt.Sprintf("no descriptor is left of a failed Create with %d free ones", free), func() bool {
			return descriptors(t, pid) <= before
		})
		before = descriptors(t, pid)
	}
	if refused < 5 || refused == most {
		t.Errorf("%d calls of Create failed", refused)
	}
}

func TestKeeperWithoutDescriptorsGoesOn(t *testing.T) {
	n := newNode(t)
	id, logPath, input := n.talker()
	created := n.args(n.newID(), spec{script: "exit 3"})
	n.create(created)
	pid := n.keeperPid()
	process := fmt.Sprintf("mica-keeper (process %d)", pid)
	raise := limitDescriptors(t, pid, 0)
	_, err := n.client.Attach(t.Context(), id, AttachArgs{Stdout: true})
	exhausted(t, err, process)

	other, err := Connect(t.Context(), n.o)
	if err != nil {
		t.Fatalf("a second client: %v", err)
	}
	if states, err := other.List(t.Context()); err != nil || len(states) != 2 {
		t.Errorf("List of a second client: %v, %v", states, err)
	}
	_ = other.Close()
	if err := os.Rename(logPath, logPath+".1"); err != nil {
		t.Fatal(err)
	}
	if err := n.client.ReopenLog(t.Context(), id); err != nil {
		t.Errorf("ReopenLog: %v", err)
	}
	if _, err := io.WriteString(input, "go\n"); err != nil {
		t.Fatal(err)
	}
	if exit := n.exit(id); exit.Code != 7 || exit.Reason != "" {
		t.Errorf("exit = %+v", exit)
	}
	if size(filepath.Join(n.o.Dir, id, "exit.json")) == 0 {
		t.Error("the exit is not recorded")
	}
	if lines := readLog(t, logPath); len(lines) != 1 || lines[0].text != "two" {
		t.Errorf("log after reopening: %v", lines)
	}
	n.start(created.ID)
	if exit := n.exit(created.ID); exit.Code != 3 {
		t.Errorf("exit = %+v", exit)
	}
	for _, id := range []string{id, created.ID} {
		if err := n.client.Delete(t.Context(), id); err != nil {
			t.Errorf("Delete: %v", err)
		}
		for _, left := range []string{filepath.Join(n.root, id), filepath.Join(n.o.Dir, id)} {
			if size(left) > 0 {
				t.Errorf("Delete leaves %s", left)
			}
		}
	}
	raise()
	again, _ := n.run(spec{script: "exit 4"})
	if exit := n.exit(again); exit.Code != 4 {
		t.Errorf("exit = %+v", exit)
	}
}

// If keeper or daemon lack descriptors for copies, the keeper sends the copies later, and the next
// keeper can use them.
func TestCopiesComeWhenDescriptorsAreFree(t *testing.T) {
	for name, whose := range map[string]func(*node) (pid, free int){
		"keeper": func(n *node) (int, int) { return n.keeperPid(), 2 },
		"daemon": func(*node) (int, int) { return os.Getpid(), 0 },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			id, logPath, _ := n.talker()
			l, err := n.client.current(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			n.client.release(id)
			pid, free := whose(n)
			raise := limitDescriptors(t, pid, free)
			err = n.client.ReopenLog(t.Context(), id) // makes the keeper send copies again
			if name == "daemon" && err == nil {
				_, err := n.client.Attach(t.Context(), id, AttachArgs{Stdout: true})
				exhausted(t, err, fmt.Sprintf("micad (process %d)", pid))
			}
			n.sameLink(l)
			held := copiesOf(n.client, id)
			raise()
			if err != nil {
				t.Fatalf("ReopenLog: %v", err)
			}
			if held != 0 {
				t.Fatalf("%d copies were stored although no descriptor was free: the test is wrong", held)
			}
			eventually(t, "copies", func() bool { return copiesOf(n.client, id) > 0 })
			n.sameLink(l)
			n.killKeeper()
			if _, err := n.client.Get(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if err := n.client.Kill(t.Context(), id, unix.SIGKILL, false); err != nil {
				t.Fatal(err)
			}
			if exit := n.exit(id); exit.At.IsZero() {
				t.Errorf("exit = %+v", exit)
			}
			if lines := readLog(t, logPath); len(lines) != 1 || lines[0].text != "one" {
				t.Errorf("log = %v", lines)
			}
			if log := n.keeperLog(); strings.Contains(log, "were lost with keeper and daemon") {
				t.Errorf("the next keeper did not get the streams:\n%s", log)
			}
		})
	}
}

func copiesOf(c *Client, id string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.held[id]; k != nil {
		return len(k.fds)
	}
	return 0
}
