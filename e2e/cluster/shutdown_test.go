package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/cluster"
)

// logind is a substitute for systemd-logind on a separate bus. A client that inhibits a shutdown
// gets a lock, and a signal when the machine is about to shut down.
type logind struct {
	bus string // the bus's address
	*dbus.Conn
	mu    sync.Mutex // guards locks
	locks [][2]*os.File
}

const (
	logindPath    = dbus.ObjectPath("/org/freedesktop/login1")
	logindManager = "org.freedesktop.login1.Manager"
)

// startLogind starts the bus and answers calls until the test ends.
func startLogind(t *testing.T) *logind {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "mica-bus-") //nolint:usetesting // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l := &logind{bus: "unix:path=" + dir + "/bus"}
	config := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, `<busconfig><type>system</type><listen>%s</listen><policy context="default">
		<allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>`, l.bus), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command("dbus-daemon", "--nofork", "--nopidfile", "--config-file="+config)
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = daemon.Process.Kill(), daemon.Wait() })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := cluster.Await(ctx, "bus", func(context.Context) (err error) {
		l.Conn, err = dbus.Connect(l.bus)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	_, err = prop.Export(l.Conn, logindPath, prop.Map{logindManager: {
		"InhibitDelayMaxUSec": {Value: uint64(time.Minute / time.Microsecond)},
	}})
	if err := errors.Join(err, l.Export(l, logindPath, logindManager)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.RequestName("org.freedesktop.login1", dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	return l
}

// Inhibit is a method on the bus. It returns a lock, which the client holds until it closes it.
func (l *logind) Inhibit(_, _, _, _ string) (dbus.UnixFD, *dbus.Error) {
	read, write, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.locks = append(l.locks, [2]*os.File{read, write})
	return dbus.UnixFD(write.Fd()), nil
}

// taken checks that n locks have been taken since the start.
func (l *logind) taken(count int) func(context.Context) error {
	return func(context.Context) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.locks) != count {
			return fmt.Errorf("%d locks were taken", len(l.locks))
		}
		return nil
	}
}

// released checks that the first lock has been released.
func (l *logind) released(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	lock := l.locks[0]
	_ = lock[1].Close() // this process's copy; the client has another one
	poll := []unix.PollFd{{Fd: int32(lock[0].Fd())}}
	if _, err := unix.Poll(poll, 0); err != nil {
		return err
	}
	if poll[0].Revents&unix.POLLHUP == 0 {
		return errors.New("the client holds the lock")
	}
	return nil
}

// prepareForShutdown sends the signal that the machine is about to shut down, or that the shutdown
// is cancelled.
func (l *logind) prepareForShutdown(goes bool) error {
	return l.Emit(logindPath, logindManager+".PrepareForShutdown", goes)
}

// Before a shutdown, the kubelet ends its pods within their grace periods and then releases its
// lock.
func TestNodeShutdown(t *testing.T) {
	f := startAlone(t)
	n := f.Nodes[1]
	l := startLogind(t)
	restart := func(bus string) {
		n.Bus = bus
		if err := errors.Join(n.StopKubelet(context.Background()), n.StartKubelet()); err != nil {
			t.Fatal(err)
		}
	}
	restart(l.bus)
	t.Cleanup(func() {
		restart("")
		if err := n.AwaitReady(context.Background()); err != nil {
			t.Error(err)
		}
	})
	f.pod("main", `
	nodeName: `+n.Name+`
	terminationGracePeriodSeconds: 10
	containers: [{name: main, image: "`+cluster.Busybox+`", command: [sh, -c, "trap 'sleep 2; exit 0' TERM; while :; do sleep 1 & wait; done"]}]
`)
	f.awaitPod("main", ready)
	f.await("a lock", l.taken(1))
	if err := l.prepareForShutdown(true); err != nil {
		t.Fatal(err)
	}
	f.await("the lock to be released", l.released)
	f.awaitPod("main", func(pod corev1.Pod) error {
		for _, condition := range pod.Status.Conditions {
			e := pod.Status.ContainerStatuses[0].State.Terminated
			if condition.Type == corev1.DisruptionTarget && condition.Reason == corev1.PodReasonTerminationByKubelet && e != nil && e.ExitCode == 0 {
				return nil
			}
		}
		return fmt.Errorf("%s, conditions %+v", status(pod), pod.Status.Conditions)
	})
	pods, err := n.Mica.Runtime.ListPodSandbox(f.ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods {
		if pod.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			t.Errorf("pod %v runs", pod.Metadata)
		}
	}
	if err := l.prepareForShutdown(false); err != nil {
		t.Fatal(err)
	}
	f.await("a lock again", l.taken(2))
	f.awaitSync(n)
}
