package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/osthread"
	"github.com/micarun/mica/internal/sealed"
	"github.com/micarun/mica/runtimeservice/keeper/wire"
)

// initTimeout bounds the wait for mica-init to be ready.
const initTimeout = 10 * time.Second

// startInit starts pid 1 of a new PID namespace.
func (s *Server) startInit(ctx context.Context, a wire.Init) (*container, error) {
	if err := a.Check(); err != nil {
		return nil, err
	}
	c, err := s.reserve(record{ID: a.ID, Init: true})
	if err != nil {
		return nil, err
	}
	if err := s.spawnInit(ctx, c, a); err != nil {
		s.forget(c)
		c.unlock()
		return nil, err
	}
	s.made(c)
	return c, nil
}

func (s *Server) spawnInit(ctx context.Context, c *container, a wire.Init) error {
	hold := s.reaper.Hold()
	defer hold()
	pid, err := runInit(a)
	if err != nil {
		return err
	}
	release := s.reaper.Own(pid)
	defer release()
	err = enterCgroups(pid, a.CgroupProcs)
	if err == nil && a.PIDNSPin != "" {
		err = unix.Mount("/proc/"+strconv.Itoa(pid)+"/ns/pid", a.PIDNSPin, "", unix.MS_BIND, "")
		if err != nil {
			err = fmt.Errorf("pin pid namespace of %s on %s: %w", a.ID, a.PIDNSPin, err)
		}
	}
	if err == nil {
		rec := c.rec
		rec.Pid = pid
		err = s.install(ctx, c, rec, nil)
	}
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, cerr := collect(pid)
		if a.PIDNSPin != "" {
			_ = unix.Unmount(a.PIDNSPin, unix.MNT_DETACH)
		}
		return errors.Join(err, cerr)
	}
	return nil
}

func enterCgroups(pid int, procs []string) error {
	for _, file := range procs {
		if err := os.WriteFile(file, []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("move init to cgroup: %w", err)
		}
	}
	return nil
}

// runInit starts mica-init and waits until it is ready. The thread that starts it joins the pod's
// namespaces and exits afterwards.
func runInit(a wire.Init) (pid int, err error) {
	if a.UserNS != "" {
		return joinInit(a)
	}
	err = osthread.Run(func() (err error) {
		pid, err = forkInit(a)
		return err
	})
	return pid, err
}

func forkInit(a wire.Init) (int, error) {
	for _, ns := range []struct {
		path string
		kind int
	}{{a.NetNS, unix.CLONE_NEWNET}, {a.IPCNS, unix.CLONE_NEWIPC}, {a.UTSNS, unix.CLONE_NEWUTS}} {
		if err := join(ns.path, ns.kind); err != nil {
			return 0, err
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer func() { _ = r.Close() }()
	program, err := sealed.Open(a.Binary)
	if err != nil {
		_ = w.Close()
		return 0, fmt.Errorf("start init %s: %w", a.ID, err)
	}
	defer func() { _ = program.Close() }()
	cmd := &exec.Cmd{Path: sealed.Path(program), Args: []string{a.Binary}}
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stdout = w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return 0, fmt.Errorf("start init %s: %w", a.ID, err)
	}
	pid := cmd.Process.Pid
	if err := awaitInit(r); err != nil {
		_ = cmd.Process.Kill()
		werr := cmd.Wait()
		return 0, fmt.Errorf("start init %s: it did not become ready: %w", a.ID, errors.Join(err, werr))
	}
	// From here on the watcher waits for the process, as for a container.
	_ = cmd.Process.Release()
	return pid, nil
}

// joinInit starts mica-init in a user namespace. mica-init itself joins the namespace: a thread of
// the keeper cannot, because the keeper has several.
func joinInit(a wire.Init) (int, error) {
	ready, readyEnd, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer func() { _ = ready.Close() }()
	pids, pidsEnd, err := os.Pipe()
	if err != nil {
		_ = readyEnd.Close()
		return 0, err
	}
	defer func() { _ = pids.Close() }()
	program, err := sealed.Open(a.Binary)
	if err != nil {
		closeFiles([]*os.File{readyEnd, pidsEnd})
		return 0, fmt.Errorf("start init %s: %w", a.ID, err)
	}
	defer func() { _ = program.Close() }()
	cmd := &exec.Cmd{Path: sealed.Path(program), Args: []string{a.Binary, "join"}}
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = readyEnd, pidsEnd
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.ExtraFiles, err = openAll(a.UserNS, a.NetNS, a.IPCNS, a.UTSNS)
	if err == nil {
		err = cmd.Run()
	}
	closeFiles(append(cmd.ExtraFiles, readyEnd, pidsEnd))
	if err != nil {
		return 0, fmt.Errorf("start init %s in its user namespace: %w", a.ID, err)
	}
	var number [4]byte
	if _, err := io.ReadFull(pids, number[:]); err != nil {
		return 0, fmt.Errorf("start init %s: read its pid: %w", a.ID, err)
	}
	pid := int(binary.NativeEndian.Uint32(number[:]))
	if err := awaitInit(ready); err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, cerr := collect(pid)
		return 0, fmt.Errorf("start init %s: it did not become ready: %w", a.ID, errors.Join(err, cerr))
	}
	return pid, nil
}

// awaitInit waits for the byte by which mica-init reports that it is ready. It also waits for the
// end of stdout, the last descriptor that mica-init closes.
func awaitInit(stdout *os.File) error {
	if err := stdout.SetReadDeadline(time.Now().Add(initTimeout)); err != nil {
		return err
	}
	sent, err := io.ReadAll(io.LimitReader(stdout, 2))
	if err == nil && len(sent) != 1 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// openAll opens the paths that are not empty.
func openAll(paths ...string) ([]*os.File, error) {
	var files []*os.File
	for _, path := range paths {
		if path == "" {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			return files, fmt.Errorf("open namespace: %w", err)
		}
		files = append(files, f)
	}
	return files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

func join(path string, kind int) error {
	if path == "" {
		return nil
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Setns(fd, kind); err != nil {
		return fmt.Errorf("join namespace %s: %w", path, err)
	}
	return nil
}
