package runtimeservice

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A wait for processes that do not die ends with its context, and says which they are.
func TestDeadlineNamesWhatDoesNotDie(t *testing.T) {
	m := newMeasured(t)
	c := m.container(m.pod(nil), nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	d := dying{cgroup: m.containerCgroup(c)}
	err := m.untilDead(ctx, d, func(ctx context.Context) error {
		<-ctx.Done()
		return fmt.Errorf("wait for its exit: %w", ctx.Err())
	})
	want := fmt.Sprintf("process %d (", c.State().Pid)
	if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "is in state") {
		t.Errorf("error %v does not name %q and its state", err, want)
	}
}

// The processes of a PID namespace are only looked for where the process is what it was recorded
// as: its number can be another's by now.
func TestNamespaceOfAnotherIsLeftAlone(t *testing.T) {
	needRoot(t)
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for _, d := range []dying{{pid: 0}, {pid: os.Getpid()}, {cgroup: "/no/such", pid: cmd.Process.Pid}} {
		if ns := namespaceOf(d); ns != nil {
			t.Errorf("namespace of %+v is taken for the container's", d)
			ns.close()
		}
	}
	ns := namespaceOf(dying{cgroup: "/", pid: cmd.Process.Pid})
	defer ns.close()
	if got := ns.processes(); len(got) != 1 || got[0] != cmd.Process.Pid {
		t.Errorf("processes of the namespace are %v, want %d", got, cmd.Process.Pid)
	}
}
