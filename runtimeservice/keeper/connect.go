package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// connect finds or starts a keeper, returns the stored descriptors to it and upgrades it.
func (c *Client) connect(ctx context.Context) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.StartTimeout)
	defer cancel()
	conn, err := c.dialOrStart(ctx)
	if err != nil {
		return nil, nameLimit(err)
	}
	l, err := newLink(ctx, conn, c.pushed)
	if err != nil {
		return nil, err
	}
	if err := c.handBack(ctx, l); err != nil {
		l.close()
		<-l.done
		return nil, err
	}
	c.upgrade(ctx, l)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		l.close()
	}
	c.link, c.why, c.grace = l, nil, 0
	if l.hello.Managed {
		c.grace = managerGrace
	}
	close(c.changed)
	c.changed = make(chan struct{})
	return l, nil
}

// managerGrace is how long the client waits for the service manager of a dead keeper to start the
// next one. After that, the client starts a keeper itself, outside the service manager.
const managerGrace = 5 * time.Second

// dialOrStart dials until a keeper answers or ctx ends. It starts a keeper if none answers, unless
// a service manager is about to. Of several keepers started at once, the lock admits one.
func (c *Client) dialOrStart(ctx context.Context) (*wire.Conn, error) {
	pause := time.Millisecond
	c.mu.Lock()
	managed := time.Now().Add(c.grace)
	c.mu.Unlock()
	for {
		conn, err := wire.Dial(c.o.Dir)
		if err == nil {
			return conn, nil
		}
		if !wire.Absent(err) {
			return nil, err
		}
		if !time.Now().Before(managed) {
			if err := c.startKeeper(ctx); err != nil {
				return nil, fmt.Errorf("start keeper: %w", err)
			}
			if conn, err = wire.Dial(c.o.Dir); err == nil {
				return conn, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to keeper in %s: %w", c.o.Dir, errors.Join(ctx.Err(), err))
		case <-c.end:
			return nil, fmt.Errorf("connect to keeper in %s: client is closed", c.o.Dir)
		case <-time.After(pause):
			pause = min(2*pause, 250*time.Millisecond)
		}
	}
}

// startKeeper runs "mica-keeper start", which returns once the keeper accepts connections.
func (c *Client) startKeeper(ctx context.Context) error {
	dir, err := filepath.Abs(c.o.Dir)
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, c.o.Binary, "start", "--dir", dir)
	cmd.Env = keeperEnv(os.Environ())
	cmd.Dir = "/"
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// keeperEnv removes the variables that a service manager set for the daemon only.
func keeperEnv(env []string) []string {
	var out []string
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "INVOCATION_ID", "JOURNAL_STREAM", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES":
		default:
			out = append(out, kv)
		}
	}
	return out
}

// upgrade makes a keeper of another build execute o.Binary in place. A failure is logged only: the
// protocol versions already agree.
func (c *Client) upgrade(ctx context.Context, l *link) {
	if c.o.NoUpgrade {
		return
	}
	id, err := wire.FileID(c.o.Binary)
	if err != nil || id == l.hello.Exe {
		return
	}
	binary, err := filepath.Abs(c.o.Binary)
	if err == nil {
		_, _, err = l.call(ctx, wire.OpUpgrade, wire.Upgrade{Binary: binary}, nil)
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "Cannot upgrade the keeper in place", "dir", c.o.Dir, "pid", l.hello.Pid)
		return
	}
	klog.FromContext(ctx).Info("Upgraded the keeper in place", "dir", c.o.Dir, "pid", l.hello.Pid)
}

// run replaces a lost link until Close.
func (c *Client) run(l *link) {
	defer close(c.done)
	for {
		<-l.done
		if l = c.relink(); l == nil {
			return
		}
	}
}

// relink connects until a keeper answers. It returns nil once the client is closed.
//
//nolint:contextcheck // it runs until Close
func (c *Client) relink() *link {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-c.end:
			cancel()
		case <-ctx.Done():
		}
	}()
	pause := 10 * time.Millisecond
	for {
		c.mu.Lock()
		c.link = nil
		over := c.closed || c.stopping
		c.mu.Unlock()
		if over {
			return nil
		}
		l, err := c.connect(ctx)
		if err == nil {
			return l
		}
		klog.Background().Error(err, "Connecting to the keeper failed", "dir", c.o.Dir)
		c.mu.Lock()
		c.why = err
		c.mu.Unlock()
		select {
		case <-c.end:
		case <-time.After(pause):
			pause = min(2*pause, 5*time.Second)
		}
	}
}

// current returns the link. While the keeper is being replaced, it waits.
func (c *Client) current(ctx context.Context) (*link, error) {
	for {
		c.mu.Lock()
		l, changed, why := c.link, c.changed, c.why
		closed := c.closed
		c.mu.Unlock()
		if closed {
			return nil, fmt.Errorf("the keeper client is closed: %w", errdefs.ErrUnavailable)
		}
		if l != nil && !l.isLost() {
			return l, nil
		}
		select {
		case <-changed:
		case <-c.done:
			return nil, fmt.Errorf("the keeper client is closed or was shut down: %w", errdefs.ErrUnavailable)
		case <-time.After(20 * time.Millisecond): // run has not noticed yet that the link is lost
		case <-ctx.Done():
			err := fmt.Errorf("wait for the keeper: %w: %w", ctx.Err(), errdefs.ErrUnavailable)
			if why != nil {
				err = fmt.Errorf("%w: %s", err, why.Error())
			}
			return nil, err
		}
	}
}

func (l *link) isLost() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// Shutdown ends the keeper and waits until its process has exited. The error satisfies
// errdefs.IsFailedPrecondition while the keeper has containers, including ended ones, that were not
// deleted. After a successful Shutdown, only Close may be called.
func (c *Client) Shutdown(ctx context.Context) error {
	ctx, cancel := bounded(ctx, c.o.RequestTimeout)
	defer cancel()
	l, err := c.current(ctx)
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(l.hello.Pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("shut down keeper: %w", err)
	}
	process := os.NewFile(uintptr(pidfd), "keeper")
	defer func() { _ = process.Close() }()
	c.setStopping(true)
	if err := c.on(ctx, l, wire.OpShutdown, wire.Target{}, nil); err != nil {
		c.setStopping(false)
		return err
	}
	if err := waitReadable(ctx, process); err != nil {
		return fmt.Errorf("shut down keeper: wait for process %d: %w", l.hello.Pid, err)
	}
	for _, dir := range l.hello.Cgroup {
		_ = unix.Rmdir(dir)
	}
	return nil
}

func (c *Client) setStopping(yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopping = yes
}

// waitReadable waits until the process of pidfd has ended, or returns os.ErrDeadlineExceeded when
// ctx ends.
func waitReadable(ctx context.Context, pidfd *os.File) error {
	defer context.AfterFunc(ctx, func() { _ = pidfd.SetReadDeadline(time.Unix(1, 0)) })()
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}
