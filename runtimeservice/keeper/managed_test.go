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

// manager acts as the service manager that runs the keepers of a node.
type manager struct {
	n      *node
	notify *net.UnixConn
}

func newManager(n *node) *manager {
	n.t.Helper()
	address := &net.UnixAddr{Name: filepath.Join(n.t.TempDir(), "notify"), Net: "unixgram"}
	notify, err := net.ListenUnixgram("unixgram", address)
	if err != nil {
		n.t.Fatal(err)
	}
	return &manager{n, notify}
}

// close must be called before the node stops, because the node counts descriptors.
func (m *manager) close() { _ = m.notify.Close() }

// managed is a keeper started by the service manager.
type managed struct {
	pid    int
	status string        // its READY notification
	ended  chan struct{} // closed at its exit
	err    *error        // how it ended
}

// start runs a keeper as a service manager does and waits until it is ready. The test must end it.
func (m *manager) start() managed {
	m.n.t.Helper()
	cmd := exec.Command(programs.keeper, "run", "--dir", m.n.o.Dir)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.notify.LocalAddr().String())
	if err := cmd.Start(); err != nil {
		m.n.t.Fatal(err)
	}
	k := managed{pid: cmd.Process.Pid, ended: make(chan struct{}), err: new(error)}
	go func() {
		defer close(k.ended)
		*k.err = cmd.Wait()
	}()
	m.n.waits = append(m.n.waits, func() { <-k.ended })
	if err := m.notify.SetReadDeadline(time.Now().Add(wait())); err != nil {
		m.n.t.Fatal(err)
	}
	buf := make([]byte, 1000)
	length, err := m.notify.Read(buf)
	if err != nil {
		m.n.t.Fatal(err)
	}
	ready, status, _ := strings.Cut(string(buf[:length]), "\n")
	if ready != "READY=1" {
		m.n.t.Errorf("the keeper notified %q", buf[:length])
	}
	k.status = status
	return k
}

// newManagedNode returns a node whose first keeper was started by a service manager.
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

// wait sets how long the service manager has to start the next keeper.
func (n *node) wait(grace time.Duration) {
	n.client.mu.Lock()
	defer n.client.mu.Unlock()
	n.client.grace = grace
}

// If a service manager runs the keeper, the service manager starts the next one, also after an
// upgrade.
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
		t.Errorf("after an upgrade, the grace period is %s", got)
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

// If the service manager does not start the next keeper in time, the client starts one. A later
// start by the service manager fails with an error.
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
		t.Errorf("for a keeper that the daemon started, the grace period is %s", got)
	}
	late := m.start()
	if !strings.Contains(late.status, "Another keeper") {
		t.Errorf("the late keeper notified %q", late.status)
	}
	var exit *exec.ExitError
	<-late.ended
	if !errors.As(*late.err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("the late keeper ended with %v, want exit code 3", *late.err)
	}
}
