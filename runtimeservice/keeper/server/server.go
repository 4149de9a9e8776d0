// Package server is mica-keeper: the parent of every container of a node.
//
// It runs the OCI runtime so that the containers' init processes become its
// children, moves their output into CRI logs and to attached clients, collects
// their exits, and serves the daemon by package wire. It decides nothing: it
// restarts no container and removes none that it was not told to.
//
// Four kinds of goroutines: the pump, which owns every stream; the watcher of
// pidfds; one reader and one writer per connection; and one per request or
// exit while it is being dealt with. A container costs no goroutine and no
// buffer. A daemon that does not read is disconnected when its queue is
// full, and nothing else waits for it.
//
// On disk it keeps what package keeper documents. It imports nothing but the
// standard library, golang.org/x/sys and leaves of this module, to stay small.
package server

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/micarun/mica/internal/reaper"
	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

// Options of a keeper.
type Options struct {
	// Dir is the state directory.
	Dir string
	// Ready, when not nil, is closed once the keeper serves. An error of the
	// start is written to it before.
	Ready *os.File
	// Serving, when not nil, is called once the keeper serves.
	Serving func()
	// OwnCgroup says that the process is in a cgroup of its own already, which a
	// service manager made for it. Otherwise it makes one.
	OwnCgroup bool
	// Resume is the number of the memfd with the state of the program that
	// this one replaces; 0 for none.
	Resume int
}

// settleTimeout is how long a new keeper waits for a daemon to hand back the
// descriptors of an earlier keeper's containers.
const settleTimeout = 10 * time.Second

// ErrLocked says that another keeper serves the directory.
var ErrLocked = errors.New("another keeper holds the lock")

// Server is one keeper.
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
	spare    *reserve // of steps that take no time
	runs     *reserve // of runs of OCI runtimes, and of what waits for a disk
	table    *table   // set before settled is closed
	settled  chan struct{}
	quit     chan struct{}
	work     work
	kills    ledger
	gate     sync.RWMutex // held for writing from an upgrade's last look to its end

	mu         sync.Mutex // guards the rest
	containers map[string]*container
	making     map[string]bool
	sessions   map[*session]bool
	stopping   bool
}

// Run serves until a client asks for the end or ctx ends.
func Run(ctx context.Context, o Options) error {
	s := &Server{
		o: o, instance: newInstance(), lock: -1, settled: make(chan struct{}), quit: make(chan struct{}),
		containers: map[string]*container{}, making: map[string]bool{}, sessions: map[*session]bool{},
	}
	s.work.rest = relax
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
	relax()
	select {
	case <-s.quit:
	case <-ctx.Done():
	}
	s.close()
	return nil
}

// newInstance names this life of a keeper.
func newInstance() string {
	return strconv.Itoa(os.Getpid()) + "." + strconv.FormatInt(time.Now().UnixNano(), 36)
}

// relax gives memory back that only a burst of requests needed.
func relax() { debug.FreeOSMemory() }

// open takes the directory and starts everything.
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

// recover reads what an earlier keeper has left.
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

// settle ends the time in which descriptors are handed back: containers
// whose descriptors did not come are watched by pid, without their streams.
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

func (s *Server) useTable(t *table) {
	s.table = t
	_ = s.pump.call(context.Background(), func() { s.pump.table = t })
}

// watchLost watches a container of which nothing is left but its pid.
func (s *Server) watchLost(c *container) {
	s.logf("container %s: its descriptors died with keeper and daemon; its output is no longer logged", c.id())
	pidfd, err := s.openProcess(c.rec)
	if err != nil {
		s.conclude(c, wire.Exit{Code: 255, At: time.Now(), Reason: "exit code unknown: it ended while neither keeper nor daemon was there"})
		return
	}
	c.mu.Lock()
	c.pidfd = pidfd
	c.mu.Unlock()
	if err := s.watcher.add(pidfd, c); err != nil {
		s.logf("%v", err)
	}
}

// awaitDescriptors is how often a step that cannot be given up looks for a free
// descriptor.
const awaitDescriptors = time.Second

// openProcess opens the process of a record. It waits until there is a descriptor
// for it: without one nobody can say that the process has ended.
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
			s.logf("container %s: %v; trying until it works", rec.ID, asReply(err))
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
			return aerr != unix.EAGAIN
		})
		if err != nil {
			return // closed
		}
		if aerr != nil {
			if !refused {
				s.logf("accept: %v", asReply(aerr))
			}
			refused = true
			time.Sleep(100 * time.Millisecond) // out of descriptors: others must get on first
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

// close lets go of the sockets; the kernel takes the rest.
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

// later runs f in a goroutine that an upgrade waits for.
func (s *Server) later(f func()) {
	go func() {
		s.gate.RLock()
		s.work.add()
		s.gate.RUnlock()
		defer s.work.done()
		f()
	}()
}

// work counts what is being done, and calls rest a while after the last.
type work struct {
	rest func()

	mu    sync.Mutex // guards the rest
	n     int
	timer *time.Timer
}

// restAfter is how long nothing must have been done before rest is called.
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
