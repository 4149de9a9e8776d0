package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/micarun/mica/e2e/node"
)

// stop ends the node and the registry, and reports leftovers.
func stop(ctx context.Context, s settings) error {
	n, err := node.Adopt(ctx, s.options())
	if err != nil {
		return err
	}
	if n.Pid() == 0 {
		if _, err := os.Stat(n.Config()); err != nil {
			fmt.Println("no node runs")
			return stopRegistry(s)
		}
		// The daemon is started if it does not run, because it removes the most.
		if n, err = node.Start(ctx, s.options()); err != nil {
			return err
		}
	}
	var errs []error
	if out, err := n.Mica(ctx, "check"); err != nil {
		errs = append(errs, fmt.Errorf("check: %w: %s", err, out))
	}
	errs = append(errs, stopRegistry(s), n.Remove(ctx), node.RemovePortChains(ctx))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Println("stopped; nothing is left")
	return nil
}

// pidFile is where the registry's process ID is kept.
func (s settings) pidFile() string { return filepath.Join(s.options().State, "registry.pid") }

// startRegistry starts the registry, unless an earlier run's still serves.
func startRegistry(ctx context.Context, s settings) error {
	if pid := registryPid(s); pid != 0 && answers(s.registry) {
		return nil
	}
	if answers(s.registry) {
		return fmt.Errorf("start registry: another process listens on %s", s.registry)
	}
	if err := os.MkdirAll(s.options().State, 0o711); err != nil {
		return fmt.Errorf("start registry: %w", err)
	}
	registry := exec.Command(filepath.Join(s.bin, "imagebox"), "serve", "-addr", s.registry)
	registry.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := registry.Start(); err != nil {
		return fmt.Errorf("start registry: %w", err)
	}
	if err := os.WriteFile(s.pidFile(), []byte(strconv.Itoa(registry.Process.Pid)), 0o644); err != nil {
		return errors.Join(fmt.Errorf("start registry: %w", err), registry.Process.Kill())
	}
	for range 100 {
		if answers(s.registry) {
			fmt.Printf("registry %d serves %s\n", registry.Process.Pid, s.registry)
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return fmt.Errorf("start registry: no answer on %s", s.registry)
}

func answers(address string) bool {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// registryPid returns the process ID of the registry that an earlier run started, 0 if it has
// exited.
func registryPid(s settings) int {
	text, err := os.ReadFile(s.pidFile())
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	// The process ID may since belong to another process.
	arguments, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(arguments), "imagebox\x00serve") {
		return 0
	}
	return pid
}

func stopRegistry(s settings) error {
	pid := registryPid(s)
	if pid == 0 {
		return nil
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop registry: %w", err)
	}
	return os.RemoveAll(s.pidFile())
}
