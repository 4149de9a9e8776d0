// Package server is mica-keeper, the parent of every container on a node.
//
// It runs the OCI runtime such that the containers' init processes become its children. It copies
// their output to CRI logs and to attached clients, collects their exits, and serves the daemon
// with the protocol of package wire. It has no policy: it neither restarts containers nor removes
// any on its own.
//
// There are four kinds of goroutines: the pump, which owns every stream; the watcher of pidfds; a
// reader and a writer per connection; and one per running request or exit. A container takes no
// goroutine and no buffer. A daemon that does not read is disconnected once its queue is full; it
// delays nothing else.
//
// Package keeper documents the files. Imports are limited to the standard library, golang.org/x/sys
// and leaf packages of this module, to keep the process small.
package server

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/micarun/mica/internal/reaper"
	"github.com/micarun/mica/internal/residency"
	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

// Options configure a keeper.
type Options struct {
	// Dir is the state directory.
	Dir string
	// Ready, if not nil, is closed once the keeper accepts connections. An error of the start is
	// written to it before.
	Ready *os.File
	// Serving, if not nil, is called once the keeper accepts connections.
	Serving func()
	// OwnCgroup is true if a service manager made a separate cgroup for the process. Otherwise the
	// keeper makes one.
	OwnCgroup bool
	// Resume is the memfd with the state of the program that this one replaces, or 0.
	Resume int
}

// settleTimeout is how long a new keeper waits for a daemon to hand back the descriptors of an
// earlier keeper's containers.
const settleTimeout = 10 * time.Second

// ErrLocked means that another keeper serves the directory.
var ErrLocked = errors.New("another keeper holds the lock")

// Server is one keeper. Its methods may be called concurrently.
type Server struct {
	o        Options
	instance string
	exe      string
	cgroups  []string
	managed  bool // a service manager runs the keeper
	lock     int
	listener *os.File
	pump     *pump
	watcher  *watcher
	reaper   *reaper.Reaper
	spare    *reserve // for short steps
	runs     *reserve // for runs of OCI runtimes, and for steps that wait for a disk
	table    *table   // set before settled is closed
	settled  chan struct{}
	quit     chan struct{}
	work     work
	kills    ledger
	gate     sync.RWMutex // locked by an upgrade from its last check on

	mu         sync.Mutex // guards the rest
	containers map[string]*container
	making     map[string]bool
	sessions   map[*session]bool
	stopping   bool
}

// Run serves until a client requests the shutdown or ctx ends; it then returns nil. It returns
// ErrLocked if another keeper serves o.Dir.
func Run(ctx context.Context, o Options) error {
	s := &Server{
		o: o, instance: newInstance(), lock: -1, settled: make(chan struct{}), quit: make(chan struct{}),
		containers: map[string]*container{}, making: map[string]bool{}, sessions: map[*session]bool{},
	}
	s.work.rest = s.relax
	s.spare, s.runs = newReserve(spareSteps), newReserve(spareRuns)
	var err error
	if s.exe, err = wire.FileID("/proc/self/exe"); err != nil {
		return err
	}
	was, err := readHandover(o.Resume)
	if err != nil {
		return err
	}
	if err := s.open(was); err != nil {
		return err
	}
	if o.Ready != nil {
		_ = o.Ready.Close()
	}
	if o.Serving != nil {
		o.Serving()
	}
	s.relax()
	select {
	case <-s.quit:
	case <-ctx.Done():
	}
	s.close()
	return nil
}

// newInstance returns a unique name for this run of a keeper.
func newInstance() string {
	return strconv.Itoa(os.Getpid()) + "." + strconv.FormatInt(time.Now().UnixNano(), 36)
}

// relax returns memory to the kernel that only the start or a burst of requests needed.
func (s *Server) relax() {
	if err := residency.Release(); err != nil {
		s.logf("%v", err)
	}
}

// open locks the directory and starts the goroutines.
//
//nolint:contextcheck // what it starts ends with close, not with the context of serve
func (s *Server) open(was *handover) error {
	if err := s.takeLock(was); err != nil {
		return err
	}
	if was == nil {
		s.cgroups, s.managed = settleDown(s.o), s.o.OwnCgroup
	}
	var err error
	if s.reaper, err = reaper.New(reaper.Options{}); err != nil {
		return err
	}
	hold := s.reaper.Hold()
	defer hold()
	if s.watcher, err = newWatcher(func(c *container) { s.later(func() { s.ended(c) }) }); err != nil {
		return err
	}
	if s.pump, err = newPump(); err != nil {
		return err
	}
	go s.watcher.run()
	if was != nil {
		return s.resume(was)
	}
	if err := s.recover(); err != nil {
		return err
	}
	fd, err := wire.Listen(s.o.Dir)
	if err != nil {
		return err
	}
	return s.serve(fd)
}

func (s *Server) takeLock(was *handover) error {
	if was != nil {
		s.lock = was.Lock
		return nil
	}
	fd, err := unix.Open(filepath.Join(s.o.Dir, "lock"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("open lock of %s: %w", s.o.Dir, err)
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = unix.Close(fd)
		if err == unix.EWOULDBLOCK {
			return ErrLocked
		}
		return fmt.Errorf("lock %s: %w", s.o.Dir, err)
	}
	s.lock = fd
	return nil
}

// recover reads the records that an earlier keeper left.
func (s *Server) recover() error {
	records, exits, err := s.readRecords()
	if err != nil {
		return fmt.Errorf("read containers of %s: %w", s.o.Dir, err)
	}
	orphans := 0
	for _, rec := range records {
		if rec.Pid == 0 {
			s.removeStale(rec)
			continue
		}
		c := newContainer(rec)
		if c.exit = exits[rec.ID]; c.exit != nil {
			close(c.gone)
			c.rec.Row = -1
		} else {
			c.orphan = true
			orphans++
			s.kills.join(rec.Cgroup)
		}
		s.containers[rec.ID] = c
	}
	if orphans == 0 {
		return s.settle()
	}
	time.AfterFunc(settleTimeout, func() {
		if err := s.settle(); err != nil {
			s.logf("%v", err)
		}
	})
	return nil
}

// settle ends the time in which descriptors are handed back. A container whose descriptors did not
// come is watched by process ID, and its streams are lost.
func (s *Server) settle() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.settled:
		return nil
	default:
	}
	if s.table == nil {
		t, err := newTable()
		if err != nil {
			return err
		}
		s.useTable(t)
	}
	for _, c := range s.containers {
		c.mu.Lock()
		lost := c.orphan
		c.orphan = false
		c.mu.Unlock()
		if lost {
			s.table.claim(c.rec.Row)
			go s.watchLost(c)
		}
	}
	close(s.settled)
	return nil
}

//nolint:contextcheck // the pump always has a table
func (s *Server) useTable(t *table) {
	s.table = t
	_ = s.pump.call(context.Background(), func() { s.pump.table = t })
}

// watchLost watches a container of which only the process ID is known.
func (s *Server) watchLost(c *container) {
	s.logf("container %s: its descriptors were lost with keeper and daemon; its output is no longer logged", c.id())
	pidfd, err := s.openProcess(c.rec)
	if err != nil {
		s.conclude(c, wire.Exit{Code: 255, At: time.Now(), Reason: "exit code unknown: it ended while neither keeper nor daemon ran"})
		return
	}
	c.mu.Lock()
	c.pidfd = pidfd
	c.mu.Unlock()
	if err := s.watcher.add(pidfd, c); err != nil {
		s.logf("%v", err)
	}
}

// awaitDescriptors is the interval at which a step that must not fail checks for a free descriptor.
const awaitDescriptors = time.Second

// openProcess opens the process of a record. It waits for a free descriptor: without one, the
// keeper could not notice the exit.
func (s *Server) openProcess(rec record) (pidfd int, err error) {
	for waited := false; ; waited = true {
		err = s.spare.lend(func() (err error) {
			pidfd, err = openProcess(rec)
			return err
		})
		if !wire.Exhausted(err) {
			return pidfd, err
		}
		if !waited {
			s.logf("container %s: %v; retrying", rec.ID, asReply(err))
		}
		time.Sleep(awaitDescriptors)
	}
}

func openProcess(rec record) (int, error) {
	pidfd, err := unix.PidfdOpen(rec.Pid, 0)
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", rec.Pid, err)
	}
	st, err := readStat(rec.Pid)
	if err == nil && st.started != rec.Started {
		err = unix.ESRCH
	}
	if err != nil {
		_ = unix.Close(pidfd)
		return -1, fmt.Errorf("open process %d: %w", rec.Pid, err)
	}
	return pidfd, nil
}

// serve accepts connections on a listening socket.
func (s *Server) serve(listener int) error {
	s.listener = os.NewFile(uintptr(listener), wire.SocketName)
	raw, err := s.listener.SyscallConn()
	if err != nil {
		return err
	}
	go s.accept(raw)
	return nil
}

func (s *Server) accept(raw syscall.RawConn) {
	for refused := false; ; {
		var fd int
		var aerr error
		err := raw.Read(func(l uintptr) bool {
			s.gate.RLock()
			defer s.gate.RUnlock()
			aerr = s.spare.lend(func() (err error) {
				fd, _, err = unix.Accept4(int(l), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
				return err
			})
			return !errors.Is(aerr, unix.EAGAIN)
		})
		if err != nil {
			return // closed
		}
		if aerr != nil {
			if !refused {
				s.logf("accept: %v", asReply(aerr))
			}
			refused = true
			time.Sleep(100 * time.Millisecond) // no free descriptor: other steps must finish first
			continue
		}
		refused = false
		if err := wire.CheckPeer(fd); err != nil {
			s.logf("%v", err)
			_ = unix.Close(fd)
			continue
		}
		conn, err := wire.NewConn(fd)
		if err != nil {
			s.logf("%v", err)
			continue
		}
		s.admit(conn)
	}
}

// close closes the sockets and stops the goroutines; the kernel closes the rest.
func (s *Server) close() {
	_ = unix.Unlink(filepath.Join(s.o.Dir, wire.SocketName))
	_ = s.listener.Close()
	s.mu.Lock()
	sessions := s.sessions
	s.sessions = map[*session]bool{}
	s.mu.Unlock()
	for c := range sessions {
		c.flush(time.Second)
		c.close()
	}
	s.watcher.close()
	s.pump.close()
	s.reaper.Close()
	s.spare.close()
	s.runs.close()
	_ = unix.Close(s.lock)
}

func (s *Server) logf(format string, args ...any) { log.Printf(format, args...) }

// later runs f in a goroutine. An upgrade waits for it.
func (s *Server) later(f func()) {
	go func() {
		s.gate.RLock()
		s.work.add()
		s.gate.RUnlock()
		defer s.work.done()
		f()
	}()
}

// work counts running requests, and calls rest some time after the last one.
type work struct {
	rest func()

	mu    sync.Mutex // guards the rest
	n     int
	timer *time.Timer
}

// restAfter is the idle time before rest is called.
const restAfter = 2 * time.Second

func (w *work) add() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n++
	if w.timer != nil {
		w.timer.Stop()
	}
}

func (w *work) done() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n--; w.n > 0 || w.rest == nil {
		return
	}
	if w.timer == nil {
		w.timer = time.AfterFunc(restAfter, w.rest)
		return
	}
	w.timer.Reset(restAfter)
}

func (w *work) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}
