package main

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed build-root
var buildRoot []byte

// disk is what the machine boots: a directory with kernel, initrd and root file system, with a lock
// that prevents its removal.
type disk struct {
	dir  string
	lock *os.File
}

// openDisk builds the disk unless the cache has the version that this program needs. It removes
// other versions, unless another process uses the cache.
func openDisk(ctx context.Context) (*disk, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find cache directory: %w", err)
	}
	cache = filepath.Join(cache, "mica-vm")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	d := &disk{dir: filepath.Join(cache, fmt.Sprintf("%x", sha256.Sum256(buildRoot))[:16]), lock: lock}
	if err := d.open(ctx, cache); err != nil {
		return nil, errors.Join(fmt.Errorf("open disk: %w", err), lock.Close())
	}
	return d, nil
}

func (d *disk) open(ctx context.Context, cache string) error {
	if err := d.flock(ctx, unix.LOCK_SH); err != nil {
		return err
	}
	if _, err := os.Stat(d.dir); err == nil {
		return nil
	}
	// The process that gets the lock builds the disk; the others use it.
	if err := d.flock(ctx, unix.LOCK_EX); err != nil {
		return err
	}
	if _, err := os.Stat(d.dir); err != nil {
		if err := d.build(ctx, cache); err != nil {
			return err
		}
	}
	return d.flock(ctx, unix.LOCK_SH)
}

// flock takes the lock in the given mode, or changes a held lock to that mode.
func (d *disk) flock(ctx context.Context, how int) error {
	for {
		err := unix.Flock(int(d.lock.Fd()), how|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for others that use %s: %w", filepath.Dir(d.dir), ctx.Err())
		case <-time.After(time.Second):
		}
	}
}

// build removes the remains of earlier builds from the cache, and builds d.dir.
func (d *disk) build(ctx context.Context, cache string) error {
	old, err := filepath.Glob(filepath.Join(cache, "????????????????*"))
	if err != nil {
		return err
	}
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	unfinished := d.dir + ".new"
	if err := os.Mkdir(unfinished, 0o755); err != nil {
		return err
	}
	script := filepath.Join(unfinished, "build")
	if err := os.WriteFile(script, buildRoot, 0o755); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "vm: building the root file system, once")
	cmd := exec.CommandContext(ctx, script, unfinished)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	// A cancelled command is ended together with its children.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	if err := cmd.Run(); err != nil {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		return errors.Join(fmt.Errorf("build root file system: %w", err), os.RemoveAll(unfinished))
	}
	return os.Rename(unfinished, d.dir)
}

func (d *disk) close() error { return d.lock.Close() }
