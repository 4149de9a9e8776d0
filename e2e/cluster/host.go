package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// host is what a node uses as its machine: a network and a mount namespace. The namespaces exist as
// long as a process is in them: one that only sleeps.
type host struct {
	// Keeper is the sleeping process, and Started its start time in clock ticks after boot.
	// Together they identify the process.
	Keeper  int
	Started string
	// Confined means that there is a cgroup namespace, too, whose root is the node's cgroup.
	Confined bool
}

// newHost makes namespaces with a loopback interface, and with mounts that do not propagate to the
// machine.
func newHost(ctx context.Context) (*host, error) {
	keeper := exec.Command("sleep", "infinity")
	// Unsharing the mount namespace also makes its mounts private.
	keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET}
	return startHost(ctx, keeper)
}

// startHost starts the process that keeps the namespaces.
func startHost(ctx context.Context, keeper *exec.Cmd) (*host, error) {
	if err := keeper.Start(); err != nil {
		return nil, fmt.Errorf("make namespaces: %w", err)
	}
	go func() { _ = keeper.Wait() }() // a signal ends it
	h := &host{Keeper: keeper.Process.Pid}
	var err error
	if h.Started, err = started(h.Keeper); err != nil {
		return nil, errors.Join(fmt.Errorf("make namespaces: %w", err), keeper.Process.Kill())
	}
	// Containers may propagate mounts to each other, but not to the machine.
	if err := h.script(ctx, "ip link set lo up; mount --make-rshared /"); err != nil {
		return nil, errors.Join(fmt.Errorf("make namespaces: %w", err), keeper.Process.Kill())
	}
	return h, nil
}

// started returns the start time of a process, in clock ticks after boot.
func started(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	return fields[19], nil
}

// lives reports whether the namespaces still exist.
func (h *host) lives() bool {
	at, err := started(h.Keeper)
	return err == nil && at == h.Started
}

// enter returns a command line that runs the command line after it in the namespaces.
func (h *host) enter() []string {
	line := []string{"nsenter", "--target", strconv.Itoa(h.Keeper), "--net", "--mount"}
	if !h.Confined {
		return append(line, "--")
	}
	const script = `for file in /sys/fs/cgroup/*/cgroup.procs; do echo 0 >"$file"; done; exec "$@"`
	return append(line, "--cgroup", "--", "sh", "-ec", script, "sh")
}

// command prepares a command in the namespaces. Its process executes name directly, so the process
// ID is name's.
func (h *host) command(ctx context.Context, name string, arguments ...string) *exec.Cmd {
	line := append(append(h.enter(), name), arguments...)
	return exec.CommandContext(ctx, line[0], line[1:]...)
}

// script runs a shell script in the namespaces, which ends at the first error.
func (h *host) script(ctx context.Context, text string) error {
	if out, err := h.command(ctx, "sh", "-ec", text).CombinedOutput(); err != nil {
		return fmt.Errorf("run %q: %w: %s", text, err, bytes.TrimSpace(out))
	}
	return nil
}

// in calls f in the network namespace: sockets created by f belong to it.
func (h *host) in(f func() error) error {
	result := make(chan error, 1)
	go func() {
		// If the thread cannot return, it stays locked and therefore exits with the goroutine.
		runtime.LockOSThread()
		err, back := h.visit(f)
		if back == nil {
			runtime.UnlockOSThread()
		}
		result <- errors.Join(err, back)
	}()
	return <-result
}

// visit calls f with this thread in the network namespace. back is the error of the thread's
// return.
func (h *host) visit(f func() error) (err, back error) {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err), nil
	}
	defer own.Close()
	other, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", h.Keeper))
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err), nil
	}
	defer other.Close()
	if err := unix.Setns(int(other.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err), nil
	}
	err = f()
	return err, unix.Setns(int(own.Fd()), unix.CLONE_NEWNET)
}

// dial connects to an IP address and port from within the namespace.
func (h *host) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = h.in(func() (err error) {
		var dialer net.Dialer
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// listen listens on an IP address and port within the namespace.
func (h *host) listen(ctx context.Context, address string) (listener net.Listener, err error) {
	err = h.in(func() (err error) {
		var config net.ListenConfig
		listener, err = config.Listen(ctx, "tcp", address)
		return err
	})
	return listener, err
}

// find returns the processes in the network namespace whose executable is called program; with "",
// all of them.
func (h *host) find(program string) ([]int, error) {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", h.Keeper))
	if err != nil {
		return nil, fmt.Errorf("find processes: %w", err)
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, dir := range dirs {
		// Processes that exit in the meantime are omitted.
		if namespace, err := os.Readlink(dir + "/ns/net"); err != nil || namespace != own {
			continue
		}
		line, err := os.ReadFile(dir + "/cmdline")
		name, _, _ := strings.Cut(string(line), "\x00")
		if err != nil || program != "" && filepath.Base(name) != program {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// end sends SIGTERM to the processes called program and waits until they have exited. After
// endTimeout it kills them and returns an error.
func (h *host) end(ctx context.Context, program string) error {
	gone := func(context.Context) error {
		pids, err := h.find(program)
		if err == nil && len(pids) > 0 {
			err = fmt.Errorf("%s %v runs", program, pids)
		}
		return err
	}
	pids, err := h.find(program)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGTERM)
	}
	patience, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	late := Await(patience, program+" to end", gone)
	if late == nil {
		return nil
	}
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	patience, cancel = context.WithTimeout(ctx, endTimeout)
	defer cancel()
	return errors.Join(late, Await(patience, program+" to be killed", gone))
}

// destroy kills all processes in the namespaces, which removes the namespaces.
func (h *host) destroy(ctx context.Context) error {
	if !h.lives() {
		return nil
	}
	// The keeper is killed last: without it, the others could not be found.
	all, err := h.find("")
	for _, pid := range all {
		if pid != h.Keeper {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	_ = unix.Kill(h.Keeper, unix.SIGKILL)
	return errors.Join(err, Await(ctx, "namespaces to end", func(context.Context) error {
		for _, pid := range append(all, h.Keeper) {
			if _, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil {
				return fmt.Errorf("process %d still runs", pid)
			}
		}
		return nil
	}))
}

// Await calls check until it succeeds. If ctx ends first, the error is check's last error other
// than that of ctx.
func Await(ctx context.Context, what string, check func(context.Context) error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var err error
	for {
		latest := check(ctx)
		if latest == nil {
			return nil
		}
		if err == nil || ctx.Err() == nil {
			err = latest
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %w", what, ctx.Err(), err)
		case <-tick.C:
		}
	}
}
