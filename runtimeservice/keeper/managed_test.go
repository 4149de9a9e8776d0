package keeper

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// manager is a service manager that runs keepers of a node.
type manager struct {
	n    *node
	told *net.UnixConn
}

func newManager(n *node) *manager {
	n.t.Helper()
	address := &net.UnixAddr{Name: filepath.Join(n.t.TempDir(), "notify"), Net: "unixgram"}
	told, err := net.ListenUnixgram("unixgram", address)
	if err != nil {
		n.t.Fatal(err)
	}
	return &manager{n, told}
}

// close is to be called before the node stops, which counts descriptors.
func (m *manager) close() { _ = m.told.Close() }

// managed is a keeper that a service manager has started.
type managed struct {
	pid    int
	status string        // what it said when it was ready
	ended  chan struct{} // closed when it has ended
	err    *error        // and how
}

// start runs a keeper as a service manager does, until it is ready. It is for the
// test to end it.
func (m *manager) start() managed {
	m.n.t.Helper()
	cmd := exec.Command(programs.keeper, "run", "--dir", m.n.o.Dir)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.told.LocalAddr().String())
	if err := cmd.Start(); err != nil {
		m.n.t.Fatal(err)
	}
	k := managed{pid: cmd.Process.Pid, ended: make(chan struct{}), err: new(error)}
	go func() {
		defer close(k.ended)
		*k.err = cmd.Wait()
	}()
	m.n.waits = append(m.n.waits, func() { <-k.ended })
	if err := m.told.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		m.n.t.Fatal(err)
	}
	buf := make([]byte, 1000)
	length, err := m.told.Read(buf)
	if err != nil {
		m.n.t.Fatal(err)
	}
	ready, status, _ := strings.Cut(string(buf[:length]), "\n")
	if ready != "READY=1" {
		m.n.t.Errorf("the keeper told %q", buf[:length])
	}
	k.status = status
	return k
}

// newManagedNode is a node whose first keeper a service manager has started.
func newManagedNode(t *testing.T) (*node, *manager, managed) {
	t.Helper()
	var m *manager
	var first managed
	n := newNodeAfter(t, func(n *node) {
		m = newManager(n)
		first = m.start()
	})
	t.Cleanup(m.close)
	if got := n.keeperPid(); got != first.pid {
		t.Fatalf("keeper %d serves, want %d", got, first.pid)
	}
	return n, m, first
}

// wait gives the service manager so long to start the next keeper.
func (n *node) wait(grace time.Duration) {
	n.client.mu.Lock()
	defer n.client.mu.Unlock()
	n.client.grace = grace
}

// A keeper that a service manager runs is the service manager's to start again,
// also after an upgrade.
func TestServiceManagerStartsTheNextKeeper(t *testing.T) {
	n, m, first := newManagedNode(t)
	id, _ := n.run(spec{script: "sleep 1000"})
	n.o.Binary = n.copyKeeper()
	upgraded := n.connect()
	if err := upgraded.Close(); err != nil {
		t.Error(err)
	}
	if err := n.client.Close(); err != nil {
		t.Error(err)
	}
	n.client = n.connect()
	if got := n.client.grace; got != managerGrace {
		t.Errorf("the service manager has %s after an upgrade", got)
	}

	n.wait(time.Hour)
	n.killKeeper()
	<-first.ended
	second := m.start()
	if got := n.keeperPid(); got != second.pid {
		t.Errorf("keeper %d serves, want %d", got, second.pid)
	}
	if st, err := n.client.Get(t.Context(), id); err != nil || !st.Running {
		t.Errorf("Get = %+v, %v", st, err)
	}
}

// A service manager that starts no other keeper is not waited for, and told so if
// it does too late.
func TestServiceManagerComesLate(t *testing.T) {
	n, m, first := newManagedNode(t)
	id, _ := n.run(spec{script: "sleep 1000"})
	n.wait(10 * time.Millisecond)
	n.killKeeper()
	<-first.ended
	if st, err := n.client.Get(t.Context(), id); err != nil || !st.Running {
		t.Errorf("Get = %+v, %v", st, err)
	}
	if got := n.client.grace; got != 0 {
		t.Errorf("the daemon's own keeper's service manager has %s", got)
	}
	late := m.start()
	if !strings.Contains(late.status, "Another keeper") {
		t.Errorf("the late keeper told %q", late.status)
	}
	var exit *exec.ExitError
	<-late.ended
	if !errors.As(*late.err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("the late keeper ended with %v, want exit code 3", *late.err)
	}
}
