package server

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

// verdictTime is how long start waits after a failure to learn that the process is dead.
const verdictTime = 2 * time.Second

// execFifo is the name of the pipe by which runc and crun start the container's process. It is in
// the container's directory below the runtime's root.
const execFifo = "exec.fifo"

// start starts the process of a created container. If something kills the process during the call,
// the start counts as successful, and the exit reports the signal.
func (s *Server) start(ctx context.Context, id string) error {
	c, err := s.find(id)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	st := c.state()
	if c.rec.Init || !st.Running && !killed(st) {
		return wire.Errorf(wire.CodePrecondition, "start container %s: not in created state", id)
	}
	if !st.Running {
		return nil
	}
	if begun, err := s.begin(ctx, c); begun || err != nil {
		return err
	}
	release := c.unblockStart()
	err = s.mustRun(ctx, command{rec: c.rec, args: []string{"start", id}})
	release()
	// A runtime itself kills the process when a hook fails.
	if err == nil || strings.Contains(err.Error(), "hook") {
		return err
	}
	select {
	case <-c.gone:
	case <-ctx.Done():
	case <-time.After(verdictTime):
	}
	if killed(c.state()) {
		return nil
	}
	return err
}

func killed(st wire.State) bool { return st.Exit != nil && st.Exit.Signal != 0 }

// unblockStart makes sure that the runtime's start ends if the process dies before it is started.
// crun opens the pipe for writing, and blocks forever if the reader is gone. The reader opened here
// cannot start a dead process. release must be called once the start has ended.
func (c *container) unblockStart() (release func()) {
	pipe := c.startPipe()
	ended, released := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(released)
		select {
		case <-ended:
			return
		case <-c.gone:
		}
		fd, err := unix.Open(pipe, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		<-ended
		if err == nil { // otherwise the start is past the pipe, or the runtime has none
			_ = unix.Close(fd)
		}
	}()
	return func() { close(ended); <-released }
}

// startPipe returns the path of the pipe at which the process of a created container waits, "" if
// the runtime's root is not known.
func (c *container) startPipe() string {
	dir := c.rec.stateDir()
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, execFifo)
}
