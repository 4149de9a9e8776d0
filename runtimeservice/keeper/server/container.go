package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

// container is one container, or the init of a pod.
type container struct {
	// op is held while the container is being created, started or deleted.
	op chan struct{}
	// gone is closed once the exit is recorded.
	gone chan struct{}

	mu      sync.Mutex // guards the rest
	rec     record
	io      *stdio // nil for an init, an orphan, and after Delete
	pidfd   int    // -1 for an orphan whose process is gone
	child   bool   // the init is a child of this process
	release func() // lets the reaper collect the child
	exit    *wire.Exit
	orphan  bool // made by an earlier keeper; its descriptors have not come yet
	// uncopied is true once copying descriptors has failed; the failure is logged once.
	uncopied bool
}

func newContainer(rec record) *container {
	return &container{op: make(chan struct{}, 1), gone: make(chan struct{}), rec: rec, pidfd: -1, release: func() {}}
}

func (c *container) id() string { return c.rec.ID } // immutable

// lock begins an operation and waits for the current one.
func (c *container) lock(ctx context.Context) error {
	select {
	case c.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return wire.Errorf(wire.CodeDeadline, "container %s is busy: %v", c.id(), ctx.Err())
	}
}

func (c *container) unlock() { <-c.op }

func (c *container) state() wire.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return wire.State{ID: c.rec.ID, Pid: c.rec.Pid, Running: c.exit == nil, Exit: c.exit}
}

// streams returns the stdio of a running container.
func (c *container) streams() (*stdio, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.io == nil || c.exit != nil {
		return nil, wire.Errorf(wire.CodePrecondition, "container %s has no streams: it has ended, or its descriptors were lost", c.rec.ID)
	}
	return c.io, nil
}

// find returns a container whose creation is complete.
func (s *Server) find(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil || s.making[id] {
		return nil, wire.Errorf(wire.CodeNotFound, "container %s: not found", id)
	}
	return c, nil
}

// reserve registers a new container and writes its record. The caller holds its op.
func (s *Server) reserve(rec record) (*container, error) {
	if rec.Row = s.table.take(); rec.Row < 0 {
		return nil, wire.Errorf(wire.CodeExhausted, "create container %s: the keeper has %d containers, its maximum", rec.ID, tableRows)
	}
	c := newContainer(rec)
	c.op <- struct{}{}
	if err := s.enlist(c); err != nil {
		s.table.release(rec.Row)
		return nil, err
	}
	err := os.MkdirAll(s.path(rec.ID), 0o700)
	if err == nil {
		err = writeFile(s.path(rec.ID, recordName), rec)
	}
	if err != nil {
		s.forget(c)
		return nil, fmt.Errorf("record container %s: %w", rec.ID, err)
	}
	return c, nil
}

func (s *Server) enlist(c *container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return wire.Errorf(wire.CodeUnavailable, "create container %s: the keeper is shutting down", c.id())
	}
	if s.containers[c.id()] != nil {
		return wire.Errorf(wire.CodeExists, "container %s: already exists", c.id())
	}
	s.containers[c.id()], s.making[c.id()] = c, true
	return nil
}

// made ends the creation of a container.
func (s *Server) made(c *container) {
	s.mu.Lock()
	delete(s.making, c.id())
	s.mu.Unlock()
	s.sendCopies(c)
	c.unlock()
}

// forget removes the container's record, descriptors and table row.
//
//nolint:contextcheck // a container is removed also after the end of the request
func (s *Server) forget(c *container) {
	s.mu.Lock()
	delete(s.containers, c.id())
	delete(s.making, c.id())
	s.mu.Unlock()
	_ = s.spare.lend(func() error { return os.RemoveAll(s.path(c.id())) })
	c.mu.Lock()
	s.kills.leave(c.rec.Cgroup)
	io, pidfd := c.io, c.pidfd
	c.io, c.pidfd = nil, -1
	c.release()
	c.mu.Unlock()
	row := c.rec.Row
	done := func() {
		if io != nil {
			io.close()
		}
		s.table.release(row)
	}
	// A pump that hangs in a write to a dead disk must not block Delete.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = s.pump.call(ctx, done)
	if pidfd >= 0 {
		s.watcher.forget(pidfd)
		_ = unix.Close(pidfd)
	}
	s.push(wire.OpRelease, wire.Target{ID: c.id()}, nil)
}

func (s *Server) create(ctx context.Context, a wire.Create) (*container, error) {
	if err := a.Check(); err != nil {
		return nil, err
	}
	return s.launched(ctx, a, "create")
}

// restore creates and starts a container from CRIU's images.
func (s *Server) restore(ctx context.Context, a wire.Restore) (*container, error) {
	if err := a.Check(); err != nil {
		return nil, err
	}
	command := []string{"restore", "--detach", "--image-path", a.Images, "--work-path", a.Work}
	return s.launched(ctx, a.Create, append(command, a.Flags...)...)
}

// launched makes a container with a subcommand of the runtime.
func (s *Server) launched(ctx context.Context, a wire.Create, subcommand ...string) (*container, error) {
	c, err := s.reserve(record{ID: a.ID, Create: a})
	if err != nil {
		return nil, err
	}
	if err := s.build(ctx, c, subcommand); err != nil {
		return nil, errors.Join(err, s.unmake(ctx, c))
	}
	s.made(c)
	return c, nil
}

// build runs the runtime's create or restore and takes over the container.
func (s *Server) build(ctx context.Context, c *container, subcommand []string) error {
	hold := s.reaper.Hold() // the init becomes a child of the keeper when the runtime exits
	defer hold()
	ours, err := s.launch(ctx, c.rec, subcommand)
	if err != nil {
		return err
	}
	pid, err := readPid(s.path(c.id(), "pid"))
	if err != nil {
		ours.Close()
		return fmt.Errorf("create container %s: %w", c.id(), err)
	}
	rec := c.rec
	rec.Pid = pid
	if rec.Cgroup = rec.Create.MemoryCgroup; rec.Cgroup == "" {
		rec.Cgroup = memoryCgroup(pid)
	}
	rec.OOMKills, _ = oomKills(rec.Cgroup)
	s.kills.join(rec.Cgroup)
	return s.install(ctx, c, rec, ours)
}

// launch runs the runtime and returns the keeper's ends of the container's streams.
func (s *Server) launch(ctx context.Context, rec record, subcommand []string) (wire.FDs, error) {
	args := append(subcommand, "--bundle", rec.Create.Bundle, "--pid-file", s.path(rec.ID, "pid"))
	if rec.Create.Terminal {
		return s.launchTerminal(ctx, rec, args)
	}
	p, err := newPipes(rec.Create)
	if err != nil {
		return nil, err
	}
	err = s.runRuntime(ctx, command{rec: rec, args: append(args, rec.ID), files: p.remote})
	p.closeRemote()
	if err != nil {
		said := drained(p.ours[wire.FDStderr])
		p.ours.Close()
		if e := new(wire.Error); errors.As(err, &e) && strings.Contains(e.Text, ": exit status") && said != "" {
			err = wire.Errorf(e.Code, "%s: %s", e.Text, said)
		}
		return nil, err
	}
	return p.ours, nil
}

func (s *Server) launchTerminal(ctx context.Context, rec record, args []string) (wire.FDs, error) {
	con, err := newConsole(s.path(rec.ID))
	if err != nil {
		return nil, err
	}
	defer con.close()
	args = append(args, "--console-socket", con.path(), rec.ID)
	if err := s.runRuntime(ctx, command{rec: rec, args: args}); err != nil {
		return nil, err
	}
	master, err := con.receive(5 * time.Second)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", rec.ID, err)
	}
	return wire.FDs{wire.FDTerminal: master}, nil
}

// pipes are the stdio of a container without a terminal: the keeper's ends and the container's.
type pipes struct {
	ours   wire.FDs
	remote [3]*os.File
}

func newPipes(c wire.Create) (*pipes, error) {
	p := &pipes{ours: wire.FDs{}}
	for i, name := range []string{wire.FDStdin, wire.FDStdout, wire.FDStderr} {
		if i == 0 && !c.Stdin {
			continue // os/exec then uses /dev/null
		}
		r, w, err := pipe()
		if err == nil && (c.UID != 0 || c.GID != 0) {
			err = unix.Fchown(r, c.UID, c.GID) // changes both ends
		}
		if err != nil {
			p.closeRemote()
			p.ours.Close()
			return nil, err
		}
		mine, its := r, w
		if i == 0 {
			mine, its = w, r
		}
		p.ours[name] = mine
		p.remote[i] = os.NewFile(uintptr(its), name)
	}
	return p, nil
}

func (p *pipes) closeRemote() {
	for _, f := range p.remote {
		if f != nil {
			_ = f.Close()
		}
	}
}

// drained returns what a failed runtime has written to the container's stderr.
func drained(fd int) string {
	_ = unix.SetNonblock(fd, true)
	buf := make([]byte, wire.MaxText/2)
	n, _ := unix.Read(fd, buf)
	return strings.TrimSpace(string(buf[:max(n, 0)]))
}

func readPid(path string) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read pid file: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("read pid file %s: %q is not a pid", filepath.Base(path), data)
	}
	return pid, nil
}

// install stores pidfd, record and streams of a created process in the container.
func (s *Server) install(ctx context.Context, c *container, rec record, ours wire.FDs) error {
	release := s.reaper.Own(rec.Pid)
	pidfd, err := unix.PidfdOpen(rec.Pid, 0)
	if err == nil {
		var st procStat
		st, err = readStat(rec.Pid)
		rec.Started = st.started
	}
	if err == nil {
		err = writeFile(s.path(rec.ID, recordName), rec)
	}
	if err != nil {
		ours.Close()
		if pidfd >= 0 {
			_ = unix.Close(pidfd)
		}
		release()
		return fmt.Errorf("take over container %s: %w", rec.ID, err)
	}
	c.mu.Lock()
	c.rec, c.pidfd, c.child, c.release = rec, pidfd, true, release
	c.mu.Unlock()
	if !rec.Init {
		if err := s.connect(ctx, c, ours, false); err != nil {
			return err
		}
	}
	return s.watcher.add(pidfd, c)
}

// connect sets up the container's streams.
func (s *Server) connect(ctx context.Context, c *container, fds wire.FDs, resume bool) error {
	var io *stdio
	var err, warn error
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if cerr := s.pump.call(ctx, func() {
		if io, err = newStdio(s.pump, c.rec, fds); err == nil {
			io.onStdin = func() { s.later(func() { s.sendCopies(c) }) }
			warn = io.begin(resume)
		}
	}); cerr != nil {
		return cerr
	}
	if err != nil {
		return err
	}
	if warn != nil {
		s.logf("container %s: %v", c.id(), warn)
	}
	c.mu.Lock()
	c.io = io
	c.mu.Unlock()
	return nil
}

func (s *Server) kill(ctx context.Context, k wire.Kill) error {
	c, err := s.find(k.ID)
	if err != nil {
		return err
	}
	c.mu.Lock()
	rec, ended, pidfd := c.rec, c.exit != nil, c.pidfd
	if !k.All && !ended && pidfd >= 0 {
		err = unix.PidfdSendSignal(pidfd, unix.Signal(k.Signal), nil, 0)
	}
	c.mu.Unlock()
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil
	case err != nil:
		return fmt.Errorf("kill container %s: %w", k.ID, err)
	case !k.All || rec.Init:
		return nil
	}
	err = s.mustRun(ctx, command{rec: rec, args: []string{"kill", "--all", k.ID, strconv.Itoa(k.Signal)}})
	if err != nil && (ended || c.state().Exit != nil || strings.Contains(err.Error(), "not running")) {
		return nil
	}
	return err
}

// copiesOf returns duplicates of a container's descriptors and its record.
//
//nolint:contextcheck // copies are sent for every session, not for one request
func (s *Server) copiesOf(c *container) (wire.Descriptors, wire.FDs, error) {
	c.mu.Lock()
	rec, io, pidfd := c.rec, c.io, c.pidfd
	c.mu.Unlock()
	raw, err := json.Marshal(rec)
	if err != nil {
		return wire.Descriptors{}, nil, err
	}
	var fds wire.FDs
	if io != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		var derr error
		// A channel carries the result, because the call may end after ctx.
		got := make(chan wire.FDs, 1)
		err = s.pump.call(ctx, func() {
			var dup wire.FDs
			dup, derr = io.copies().Dup()
			got <- dup
		})
		if err == nil {
			fds, err = <-got, derr
		}
		if err != nil {
			return wire.Descriptors{}, nil, err
		}
	}
	if fds == nil {
		fds = wire.FDs{}
	}
	c.mu.Lock()
	if c.pidfd == pidfd && pidfd >= 0 {
		var n int
		if n, err = unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 3); err == nil {
			fds[wire.FDPid] = n
		}
	}
	c.mu.Unlock()
	if err != nil {
		fds.Close()
		return wire.Descriptors{}, nil, fmt.Errorf("duplicate %s: %w", wire.FDPid, err)
	}
	return wire.Descriptors{ID: rec.ID, Record: raw}, fds, nil
}
