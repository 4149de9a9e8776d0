package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
)

// Limits of one connection.
const (
	// maxQueue is how many packets wait for a peer that does not read. With more, the peer is
	// disconnected. It exceeds the copies and exits of a full node.
	maxQueue = 2*tableRows + 1024
	// sendTimeout bounds the sending of one packet.
	sendTimeout = 30 * time.Second
	// maxRequests is how many requests of one connection run concurrently.
	maxRequests = 256
)

// session is one connection.
type session struct {
	s       *Server
	conn    *wire.Conn
	slots   chan struct{} // one per request
	greeted bool          // used by the reading goroutine only

	mu     sync.Mutex // guards the rest
	queue  []outgoing
	filled *sync.Cond
	closed bool
	ready  bool // the peer gets pushed messages
}

type outgoing struct {
	packet []byte
	fds    []int
}

// admit starts serving a new connection.
func (s *Server) admit(conn *wire.Conn) *session { return s.newSession(conn, false) }

// admitGreeted is admit for a connection whose peer sent Hello to the replaced program.
func (s *Server) admitGreeted(conn *wire.Conn) *session { return s.newSession(conn, true) }

func (s *Server) newSession(conn *wire.Conn, greeted bool) *session {
	c := &session{s: s, conn: conn, slots: make(chan struct{}, maxRequests), greeted: greeted}
	c.filled = sync.NewCond(&c.mu)
	s.mu.Lock()
	s.sessions[c] = true
	s.mu.Unlock()
	go c.write()
	go c.read()
	return c
}

func (c *session) close() {
	c.mu.Lock()
	queue := c.queue
	c.queue, c.closed = nil, true
	c.filled.Broadcast()
	c.mu.Unlock()
	for _, o := range queue {
		o.drop()
	}
	_ = c.conn.Close()
	c.s.mu.Lock()
	delete(c.s.sessions, c)
	c.s.mu.Unlock()
}

func (o outgoing) drop() {
	fds := wire.FDs{}
	for i, fd := range o.fds {
		fds[string(rune(i))] = fd
	}
	fds.Close()
}

// send queues a message and takes ownership of fds. It never waits: a peer whose queue is full is
// disconnected.
func (c *session) send(m wire.Message, body any, fds wire.FDs) {
	o := outgoing{}
	for name, fd := range fds {
		m.FDs = append(m.FDs, name)
		o.fds = append(o.fds, fd)
	}
	var err error
	if o.packet, err = wire.Encode(m, body); err != nil {
		o.drop()
		o.fds = nil
		m.FDs, m.Error = nil, wire.AsError(err)
		if o.packet, err = wire.Encode(m, nil); err != nil {
			c.s.logf("%v", err)
			return
		}
	}
	c.mu.Lock()
	full := len(c.queue) >= maxQueue
	if !c.closed && !full {
		c.queue = append(c.queue, o)
		c.filled.Broadcast()
		c.mu.Unlock()
		return
	}
	closed := c.closed
	c.mu.Unlock()
	o.drop()
	if full && !closed {
		c.s.logf("disconnecting a daemon: it does not read from its socket")
		go c.close()
	}
}

func (c *session) write() {
	for {
		c.mu.Lock()
		for len(c.queue) == 0 && !c.closed {
			c.queue = nil
			c.filled.Wait()
		}
		if c.closed {
			c.mu.Unlock()
			return
		}
		o := c.queue[0]
		c.mu.Unlock()
		_ = c.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
		err := c.conn.Send(o.packet, o.fds)
		c.mu.Lock()
		if len(c.queue) > 0 { // otherwise close has dropped o
			c.queue = c.queue[1:]
			o.drop()
			c.filled.Broadcast()
		}
		c.mu.Unlock()
		if err != nil {
			c.close()
			return
		}
	}
}

// flush waits until everything queued is sent, or timeout.
func (c *session) flush(timeout time.Duration) {
	timer := time.AfterFunc(timeout, c.filled.Broadcast)
	defer timer.Stop()
	end := time.Now().Add(timeout)
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) > 0 && !c.closed && time.Now().Before(end) {
		c.filled.Wait()
	}
}

func (c *session) read() {
	defer c.close()
	s := c.s
	section := &wire.Section{Enter: s.gate.RLock, Leave: s.gate.RUnlock, Got: s.work.add, Drop: s.work.done}
	for {
		m, fds, err := c.conn.Receive(section)
		if errors.Is(err, wire.ErrDescriptors) {
			c.send(wire.Message{ID: m.ID, Op: m.Op, Error: asReply(fmt.Errorf("%s: %w", m.Op, err))}, nil, nil)
			continue
		}
		if err != nil {
			if !peerGone(err) {
				s.logf("connection: %v", err)
			}
			return
		}
		if !c.greeted {
			err := c.greet(m)
			fds.Close()
			s.work.done()
			if err != nil {
				c.flush(time.Second)
				return
			}
			continue
		}
		c.slots <- struct{}{}
		go func() {
			defer func() { <-c.slots; s.work.done() }()
			c.serve(m, fds)
		}()
	}
}

// peerGone reports whether err is an ordinary end of a connection.
func peerGone(err error) bool {
	return errors.Is(err, os.ErrClosed) || strings.Contains(err.Error(), "EOF") || strings.Contains(err.Error(), "connection reset")
}

// greet answers the first message of a connection.
func (c *session) greet(m wire.Message) error {
	s := c.s
	reply := wire.Message{ID: m.ID, Op: wire.OpHello}
	var hello wire.Hello
	err := m.Into(&hello)
	if m.Op != wire.OpHello {
		err = wire.Errorf(wire.CodeInvalid, "the first message must be %s", wire.OpHello)
	}
	if err == nil {
		if _, verr := hello.Agree(); verr != nil {
			err = wire.Errorf(wire.CodePrecondition, "%v", verr)
		}
	}
	if err != nil {
		reply.Error = wire.AsError(err)
		c.send(reply, nil, nil)
		return err
	}
	c.greeted = true
	c.send(reply, wire.Hello{
		Version: wire.Version, Min: wire.MinVersion, Pid: os.Getpid(), Exe: s.exe,
		Instance: s.instance, Cgroup: s.cgroups, Managed: s.managed, Orphans: s.orphans(),
	}, nil)
	s.later(func() { c.catchUp() })
	return nil
}

// catchUp sends a new peer all descriptor copies and exits, once the earlier keeper's are known.
func (c *session) catchUp() {
	s := c.s
	<-s.settled
	c.mu.Lock()
	c.ready = true
	c.mu.Unlock()
	for _, k := range s.all() {
		s.sendCopies(k, c)
		if st := k.state(); !st.Running {
			c.send(wire.Message{Op: wire.OpExit}, st, nil)
		}
	}
}

func (s *Server) orphans() []string {
	var ids []string
	for _, c := range s.all() {
		c.mu.Lock()
		if c.orphan {
			ids = append(ids, c.rec.ID)
		}
		c.mu.Unlock()
	}
	// The list is cut to fit into one packet: the daemon sends all copies anyway.
	return ids[:min(len(ids), 256)]
}

// all returns the containers ordered by ID, except those that are being created.
func (s *Server) all() []*container {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*container
	for id, c := range s.containers {
		if !s.making[id] {
			list = append(list, c)
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].id() < list[j].id() })
	return list
}

// listeners returns the sessions that get pushed messages.
func (s *Server) listeners() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*session
	for c := range s.sessions {
		c.mu.Lock()
		if c.ready && !c.closed {
			list = append(list, c)
		}
		c.mu.Unlock()
	}
	return list
}

// push sends a message to every peer. fds remain the caller's.
func (s *Server) push(op string, body any, fds wire.FDs) {
	for _, c := range s.listeners() {
		dup, err := fds.Dup()
		if err != nil {
			s.logf("%v", err)
			continue
		}
		c.send(wire.Message{Op: op}, body, dup)
	}
}

// sendCopies sends the copies of a container's descriptors to the given sessions, or to all. It
// retries later if no descriptor is free for a copy.
func (s *Server) sendCopies(k *container, to ...*session) {
	if k.state().Exit != nil || s.isGone(k) {
		return // a next keeper would not need them
	}
	if to == nil {
		if to = s.listeners(); len(to) == 0 {
			return
		}
	}
	body, fds, err := s.copiesOf(k)
	if err != nil {
		s.retryCopies(k, err, to)
		return
	}
	defer fds.Close()
	fds[wire.FDTable] = s.table.fd
	defer delete(fds, wire.FDTable)
	for _, c := range to {
		dup, err := fds.Dup()
		if err != nil {
			s.retryCopies(k, err, []*session{c})
			continue
		}
		c.send(wire.Message{Op: wire.OpDescriptors}, body, dup)
	}
}

// retryCopies sends copies again later if err is a lack of descriptors.
func (s *Server) retryCopies(k *container, err error, to []*session) {
	k.mu.Lock()
	again := k.uncopied
	k.uncopied = true
	k.mu.Unlock()
	if !again {
		s.logf("container %s: copy descriptors for the daemon: %v", k.id(), asReply(err))
	}
	if wire.Exhausted(err) {
		time.AfterFunc(awaitDescriptors, func() { s.later(func() { s.sendCopies(k, to...) }) })
	}
}

// serve answers one request.
func (c *session) serve(m wire.Message, fds wire.FDs) {
	defer fds.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if m.Op == wire.OpUpgrade {
		if err := c.s.upgrade(ctx, c, m); err != nil {
			c.send(wire.Message{ID: m.ID, Op: m.Op, Error: asReply(err)}, nil, nil)
		}
		return
	}
	body, out, err := c.s.handle(ctx, m, fds)
	if err != nil {
		body, out = nil, nil
	}
	c.send(wire.Message{ID: m.ID, Op: m.Op, Error: asReply(err)}, body, out)
	if m.Op == wire.OpShutdown && err == nil {
		close(c.s.quit)
	}
}

// handle executes the request m and returns body and descriptors of the reply.
func (s *Server) handle(ctx context.Context, m wire.Message, fds wire.FDs) (any, wire.FDs, error) {
	switch m.Op {
	case wire.OpAdopt:
		return nil, nil, s.adopt(ctx, m, fds)
	case wire.OpAdoptDone:
		return nil, nil, s.settle()
	}
	select {
	case <-s.settled:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	switch m.Op {
	case wire.OpCreate:
		var a wire.Create
		return with(m, &a, func() (any, error) { return created(s.create(ctx, a)) })
	case wire.OpRestore:
		var a wire.Restore
		return with(m, &a, func() (any, error) { return created(s.restore(ctx, a)) })
	case wire.OpInit:
		var a wire.Init
		return with(m, &a, func() (any, error) { return created(s.startInit(ctx, a)) })
	case wire.OpKill:
		var a wire.Kill
		return with(m, &a, func() (any, error) { return nil, s.kill(ctx, a) })
	case wire.OpResize:
		var a wire.Resize
		return with(m, &a, func() (any, error) { return nil, s.resize(ctx, a) })
	case wire.OpList:
		var a wire.List
		return with(m, &a, func() (any, error) { return s.list(a.After), nil })
	case wire.OpAttach:
		var a wire.Attach
		if err := m.Into(&a); err != nil {
			return nil, nil, err
		}
		out, err := s.attach(ctx, a)
		return nil, out, err
	case wire.OpShutdown:
		return nil, nil, s.shutdown()
	}
	return s.handleTarget(ctx, m)
}

func (s *Server) handleTarget(ctx context.Context, m wire.Message) (any, wire.FDs, error) {
	var t wire.Target
	return with(m, &t, func() (any, error) {
		switch m.Op {
		case wire.OpStart:
			return nil, s.start(ctx, t.ID)
		case wire.OpDelete:
			return nil, s.remove(ctx, t.ID)
		case wire.OpReopen:
			return nil, s.reopen(ctx, t.ID)
		case wire.OpFlush:
			return nil, s.flush(ctx, t.ID)
		case wire.OpCopies:
			k, err := s.find(t.ID)
			if err == nil {
				s.sendCopies(k)
			}
			return nil, err
		case wire.OpGet:
			c, err := s.find(t.ID)
			if err != nil {
				return nil, err
			}
			return c.state(), nil
		}
		return nil, wire.Errorf(wire.CodeInvalid, "unknown operation %.32q", m.Op)
	})
}

// with decodes the body of m into a and then calls f.
func with(m wire.Message, a any, f func() (any, error)) (any, wire.FDs, error) {
	if err := m.Into(a); err != nil {
		return nil, nil, err
	}
	body, err := f()
	return body, nil, err
}

func created(c *container, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return wire.Created{Pid: c.state().Pid}, nil
}

func (s *Server) list(after string) wire.List {
	all := s.all()
	from, found := slices.BinarySearchFunc(all, after, func(c *container, id string) int { return strings.Compare(c.id(), id) })
	if found {
		from++
	}
	page := wire.List{}
	for _, c := range all[from:min(from+wire.PageSize, len(all))] {
		page.States = append(page.States, c.state())
	}
	page.More = from+wire.PageSize < len(all)
	return page
}

func (s *Server) shutdown() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.containers); n > 0 {
		return wire.Errorf(wire.CodePrecondition, "shut down keeper: it has %d containers", n)
	}
	if s.stopping {
		return wire.Errorf(wire.CodePrecondition, "shut down keeper: already requested")
	}
	s.stopping = true
	return nil
}
