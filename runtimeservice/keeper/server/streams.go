package server

import (
	"context"
	"fmt"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

// attach connects a client to a running container.
func (s *Server) attach(ctx context.Context, a wire.Attach) (wire.FDs, error) {
	c, err := s.find(a.ID)
	if err != nil {
		return nil, err
	}
	io, err := c.streams()
	if err != nil {
		return nil, err
	}
	type result struct {
		fds wire.FDs
		err error
	}
	got := make(chan result, 1)
	if err := s.pump.call(ctx, func() {
		fds, err := io.attach(a)
		got <- result{fds, err}
	}); err != nil {
		return nil, err
	}
	r := <-got
	return r.fds, r.err
}

func (s *Server) resize(ctx context.Context, a wire.Resize) error {
	c, err := s.find(a.ID)
	if err != nil {
		return err
	}
	io, err := c.streams()
	if err != nil {
		return err
	}
	var rerr error
	err = s.pump.call(ctx, func() {
		if io.terminal < 0 {
			rerr = wire.Errorf(wire.CodePrecondition, "resize container %s: it has no terminal", a.ID)
			return
		}
		if err := unix.IoctlSetWinsize(io.terminal, unix.TIOCSWINSZ, &unix.Winsize{Row: a.Height, Col: a.Width}); err != nil {
			rerr = fmt.Errorf("resize container %s: %w", a.ID, err)
		}
	})
	if err != nil {
		return err
	}
	return rerr
}

func (s *Server) reopen(ctx context.Context, id string) error {
	c, err := s.find(id)
	if err != nil {
		return err
	}
	io, err := c.streams()
	if err != nil {
		return err
	}
	var rerr error
	err = s.runs.lend(func() error {
		if err := s.pump.call(ctx, func() { rerr = io.reopen() }); err != nil {
			return err
		}
		return rerr
	})
	if err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	s.sendCopies(c)
	return nil
}

// flush writes what a container has written so far to its log.
func (s *Server) flush(ctx context.Context, id string) error {
	c, err := s.find(id)
	if err != nil {
		return err
	}
	io, err := c.streams()
	if err != nil {
		return err
	}
	return s.pump.call(ctx, io.flush)
}

// flush reads each output until it is empty, or until it has read as much as was waiting at the
// call. Only the pump may call it.
func (io *stdio) flush() {
	for _, s := range io.streams {
		if s == nil {
			continue
		}
		for left := s.waiting(); left > 0 && s.fd >= 0; {
			before := s.seen
			s.ready()
			if s.seen == before {
				break
			}
			left -= int(s.seen - before)
		}
	}
}
