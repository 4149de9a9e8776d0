package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

// adopt receives a container's descriptors from the daemon.
func (s *Server) adopt(ctx context.Context, m wire.Message, fds wire.FDs) error {
	var a wire.Descriptors
	if err := m.Into(&a); err != nil {
		return err
	}
	s.mu.Lock()
	c := s.containers[a.ID]
	err := s.adoptTable(fds)
	s.mu.Unlock()
	if c == nil {
		return wire.Errorf(wire.CodeNotFound, "adopt container %s: not found", a.ID)
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	wanted := c.orphan
	c.orphan = false
	c.mu.Unlock()
	if !wanted {
		return nil // its exit is recorded, or another daemon was first
	}
	pidfd := fds.Take(wire.FDPid)
	if pidfd < 0 {
		return s.adoptByPid(c)
	}
	c.mu.Lock()
	c.pidfd = pidfd
	c.mu.Unlock()
	if !s.table.claim(c.rec.Row) {
		return wire.Errorf(wire.CodeInternal, "adopt container %s: row %d is taken", a.ID, c.rec.Row)
	}
	if !c.rec.Init {
		ours := wire.FDs{}
		for name, fd := range fds {
			ours[name] = fd
			delete(fds, name)
		}
		if err := s.connect(ctx, c, ours, true); err != nil {
			s.logf("adopt container %s: %v", a.ID, err)
		}
	}
	return s.watcher.add(pidfd, c)
}

// adoptByPid returns a container whose pidfd is missing to the orphans: settle watches its process
// by process ID.
func (s *Server) adoptByPid(c *container) error {
	c.mu.Lock()
	c.orphan = true
	c.mu.Unlock()
	return wire.Errorf(wire.CodePrecondition, "adopt container %s: its pidfd is missing", c.id())
}

// adoptTable uses the earlier keeper's table, which comes with the first container. s.mu is held.
func (s *Server) adoptTable(fds wire.FDs) error {
	fd := fds.Take(wire.FDTable)
	select {
	case <-s.settled:
		_ = unix.Close(fd)
		return wire.Errorf(wire.CodePrecondition, "adopt: too late, the keeper has already lost the container's streams")
	default:
	}
	if s.table != nil || fd < 0 {
		_ = unix.Close(fd)
		return nil
	}
	t, err := openTable(fd)
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("adopt: %w", err)
	}
	s.useTable(t)
	return nil
}

// handover is the state that one program passes to the next in the same process. Its numbers are
// descriptors.
type handover struct {
	Lock       int          `json:"lock"`
	Listener   int          `json:"listener"`
	Table      int          `json:"table"`
	Sessions   []int        `json:"sessions,omitempty"`
	Caller     int          `json:"caller"` // the session that requested the upgrade
	Request    uint64       `json:"request"`
	Containers []handedOver `json:"containers,omitempty"`
	Cgroups    []string     `json:"cgroups,omitempty"`
	Managed    bool         `json:"managed,omitempty"`
}

type handedOver struct {
	Record  record         `json:"record"`
	FDs     map[string]int `json:"fds"`
	Child   bool           `json:"child"`
	Exit    *wire.Exit     `json:"exit,omitempty"`
	Clients []handedClient `json:"clients,omitempty"`
	Queued  []byte         `json:"queued,omitempty"`
	EOF     bool           `json:"eof,omitempty"`
}

type handedClient struct {
	Input  int    `json:"input"`
	Output [2]int `json:"output"`
}

// quiesceTimeout bounds the wait for running requests before an upgrade.
const quiesceTimeout = 30 * time.Second

// upgrade executes another program in this process. It returns only on failure; the keeper then
// continues to serve.
func (s *Server) upgrade(ctx context.Context, caller *session, m wire.Message) error {
	var a wire.Upgrade
	if err := m.Into(&a); err != nil {
		return err
	}
	if err := tryProgram(ctx, s, a.Binary); err != nil {
		return err
	}
	<-s.settled
	s.gate.Lock() // nothing more is read from any socket
	defer s.gate.Unlock()
	for end := time.Now().Add(quiesceTimeout); s.work.count() > 1; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return wire.Errorf(wire.CodeUnavailable, "upgrade keeper: requests are still running")
		}
	}
	for _, c := range s.listeners() {
		c.flush(time.Second)
	}
	err := errors.New("pump did not answer")
	cerr := s.pump.call(ctx, func() { err = s.exec(a.Binary, caller, m.ID) })
	return fmt.Errorf("upgrade keeper to %s: %w", a.Binary, errors.Join(cerr, err))
}

// tryProgram checks that path is a keeper that can read this keeper's state: one with the same or a
// later protocol version. After the exec, there is no way back.
func tryProgram(ctx context.Context, s *Server, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var out strings.Builder
	cmd := exec.CommandContext(ctx, path, "version")
	cmd.Stdout = &out
	release, err := s.reaper.Start(cmd)
	if err == nil {
		defer release()
		err = cmd.Wait()
	}
	if wire.Exhausted(err) {
		return fmt.Errorf("upgrade keeper: run %s: %w", path, err)
	}
	if err != nil {
		return wire.Errorf(wire.CodePrecondition, "upgrade keeper: %s is not a keeper: %v", path, err)
	}
	text, ok := strings.CutPrefix(strings.TrimSpace(out.String()), "mica-keeper protocol ")
	version, err := strconv.Atoi(text)
	if !ok || err != nil {
		return wire.Errorf(wire.CodePrecondition, "upgrade keeper: %s is not a keeper: it prints %.64q", path, out.String())
	}
	if version < wire.Version {
		return wire.Errorf(wire.CodePrecondition, "upgrade keeper: %s is older: it speaks protocol %d, this keeper %d", path, version, wire.Version)
	}
	return nil
}

// exec runs in the pump, so that no output moves. Only here do the descriptors become inheritable.
func (s *Server) exec(binary string, caller *session, request uint64) error {
	h := s.handover(caller, request)
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	state, err := memFile("mica-keeper-state")
	if err != nil {
		return err
	}
	defer func() { _ = state.Close() }()
	if _, err := state.Write(data); err != nil {
		return err
	}
	var fd int
	raw, err := state.SyscallConn()
	if err != nil {
		return err
	}
	_ = raw.Control(func(n uintptr) { fd = int(n) })
	keep := append(h.descriptors(), fd)
	inherit(keep, true)
	argv := []string{binary, "run", "--dir", s.o.Dir, "--resume", strconv.Itoa(fd)}
	err = syscall.Exec(binary, argv, os.Environ())
	inherit(keep, false)
	return err
}

func inherit(fds []int, yes bool) {
	flag := unix.FD_CLOEXEC
	if yes {
		flag = 0
	}
	for _, fd := range fds {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag)
	}
}

func (s *Server) handover(caller *session, request uint64) *handover {
	h := &handover{Lock: s.lock, Table: s.table.fd, Request: request, Caller: -1, Cgroups: s.cgroups, Managed: s.managed}
	if raw, err := s.listener.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { h.Listener = int(fd) })
	}
	for _, c := range s.listeners() {
		_ = c.conn.Control(func(fd int) {
			h.Sessions = append(h.Sessions, fd)
			if c == caller {
				h.Caller = fd
			}
		})
	}
	for _, c := range s.all() {
		c.mu.Lock()
		k := handedOver{Record: c.rec, Child: c.child, Exit: c.exit, FDs: map[string]int{}}
		if c.io != nil {
			k.FDs = c.io.copies()
			k.Queued, k.EOF = c.io.queued, c.io.eof
			for _, client := range c.io.clients {
				k.Clients = append(k.Clients, handedClient{Input: client.input, Output: client.output})
			}
		}
		if c.pidfd >= 0 {
			k.FDs[wire.FDPid] = c.pidfd
		}
		c.mu.Unlock()
		h.Containers = append(h.Containers, k)
	}
	return h
}

// descriptors lists every descriptor in the state.
func (h *handover) descriptors() []int {
	fds := append([]int{h.Lock, h.Listener, h.Table}, h.Sessions...)
	for _, k := range h.Containers {
		for _, fd := range k.FDs {
			fds = append(fds, fd)
		}
		for _, c := range k.Clients {
			for _, fd := range []int{c.Input, c.Output[0], c.Output[1]} {
				if fd >= 0 {
					fds = append(fds, fd)
				}
			}
		}
	}
	return fds
}

// readHandover reads the state from memfd fd. It returns nil for 0.
func readHandover(fd int) (*handover, error) {
	if fd == 0 {
		return nil, nil
	}
	f := os.NewFile(uintptr(fd), "mica-keeper-state")
	defer func() { _ = f.Close() }()
	if _, err := f.Seek(0, 0); err != nil {
		return nil, fmt.Errorf("read handover: %w", err)
	}
	h := new(handover)
	if err := json.NewDecoder(f).Decode(h); err != nil {
		return nil, fmt.Errorf("read handover: %w", err)
	}
	inherit(h.descriptors(), false)
	return h, nil
}

// resume restores the state of the replaced program.
func (s *Server) resume(h *handover) error {
	s.cgroups, s.managed = h.Cgroups, h.Managed
	t, err := openTable(h.Table)
	if err != nil {
		return err
	}
	s.useTable(t)
	for _, k := range h.Containers {
		if err := s.resumeContainer(k); err != nil {
			s.logf("resume container %s: %v", k.Record.ID, err)
		}
	}
	close(s.settled)
	for _, fd := range h.Sessions {
		conn, err := wire.NewConn(fd)
		if err != nil {
			s.logf("resume connection: %v", err)
			continue
		}
		c := s.admitGreeted(conn)
		if fd == h.Caller {
			c.send(wire.Message{ID: h.Request, Op: wire.OpUpgrade}, nil, nil)
		}
		s.later(c.catchUp)
	}
	return s.serve(h.Listener)
}

func (s *Server) resumeContainer(k handedOver) error {
	c := newContainer(k.Record)
	s.mu.Lock()
	s.containers[k.Record.ID] = c
	s.mu.Unlock()
	s.table.claim(k.Record.Row)
	if k.Exit == nil && k.Child {
		c.child, c.release = true, s.reaper.Own(k.Record.Pid)
	}
	fds := wire.FDs(k.FDs)
	if fds[wire.FDPid] > 0 {
		c.pidfd = fds.Take(wire.FDPid)
	}
	if len(fds) > 0 {
		if err := s.connect(context.Background(), c, fds, true); err != nil {
			return err
		}
		_ = s.pump.call(context.Background(), func() { c.io.rejoin(k) })
	}
	if k.Exit != nil {
		c.exit = k.Exit
		close(c.gone)
		return nil
	}
	if c.pidfd < 0 {
		return errors.New("no pidfd")
	}
	s.kills.join(c.rec.Cgroup)
	return s.watcher.add(c.pidfd, c)
}

// rejoin restores the attached clients of the replaced program.
func (io *stdio) rejoin(k handedOver) {
	io.queued, io.eof = k.Queued, k.EOF
	for _, h := range k.Clients {
		io.add(&client{io: io, input: h.Input, output: h.Output})
	}
	if len(io.queued) > 0 {
		io.giveInput()
	}
}
