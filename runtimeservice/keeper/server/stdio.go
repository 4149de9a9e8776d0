package server

import (
	"context"
	"fmt"
	"time"

	"github.com/micarun/mica/internal/podlog"
	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

// stdio is the keeper's end of one container's streams. The pump owns it.
type stdio struct {
	id       string
	pump     *pump
	streams  [2]*stream // nil where there is none
	stdin    int        // write end of the stdin pipe, or -1
	terminal int        // pty master, or -1
	once     bool       // StdinOnce
	log      *logFile   // nil for none
	row      int        // row in the table
	clients  []*client
	queued   []byte // input that the container has not read yet
	eof      bool   // close stdin when queued is empty
	open     int    // number of streams that have not ended
	over     chan struct{}
	onStdin  func() // called when stdin is closed
}

// newStdio makes the keeper's side of descriptors fds, and takes ownership of them. The pump does
// not use it before begin.
func newStdio(p *pump, rec record, fds wire.FDs) (*stdio, error) {
	io := &stdio{
		id: rec.ID, pump: p, row: rec.Row, once: rec.Create.StdinOnce, over: make(chan struct{}),
		stdin: fds.Take(wire.FDStdin), terminal: fds.Take(wire.FDTerminal),
	}
	first := fds.Take(wire.FDStdout)
	if io.terminal >= 0 {
		first = io.terminal
	}
	outputs := [2]int{first, fds.Take(wire.FDStderr)}
	pendings := [2]int{fds.Take(wire.FDPending0), fds.Take(wire.FDPending1)}
	for i, fd := range outputs {
		s, err := newStream(io, i, fd, pendings[i])
		if err != nil {
			for _, rest := range outputs[i+1:] { // io already owns those before i
				closeFD(rest)
			}
			for _, rest := range pendings[i+1:] {
				closeFD(rest)
			}
			fds.Close()
			io.close()
			return nil, err
		}
		io.streams[i] = s
	}
	return io, io.openLog(podlog.File{Dir: rec.Create.LogDir, Path: rec.Create.LogPath}, fds.Take(wire.FDLog))
}

func newStream(io *stdio, index, fd, pending int) (*stream, error) {
	if fd < 0 {
		if pending >= 0 {
			_ = unix.Close(pending)
		}
		return nil, nil
	}
	s := &stream{io: io, index: index, fd: fd, pending: pending, readOnly: fd == io.terminal}
	err := unix.SetNonblock(fd, true)
	if err == nil && pending < 0 {
		s.pending, err = newPending()
	}
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(s.pending, &st)
	}
	if err != nil {
		if fd != io.terminal {
			closeFD(fd)
		}
		closeFD(s.pending)
		return nil, fmt.Errorf("open %s of container %s: %w", streamNames[index], io.id, err)
	}
	s.end = st.Size
	return s, nil
}

func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd)
	}
}

func (io *stdio) openLog(at podlog.File, fd int) (err error) {
	switch {
	case fd >= 0:
		io.log, err = useLog(io.id, at, fd)
	case at.Path != "":
		io.log, err = openLog(io.id, at)
	}
	if err != nil {
		io.close()
	}
	return err
}

// begin starts the streams. With resume set they continue at the position that the table has from
// an earlier keeper. Only the pump may call it.
func (io *stdio) begin(resume bool) error {
	var err error
	if resume {
		err = io.rewind()
	}
	io.commit()
	if io.stdin >= 0 {
		_ = unix.SetNonblock(io.stdin, true)
	}
	for _, s := range io.streams {
		if s == nil {
			continue
		}
		io.open++
		s.trim()
	}
	if io.open == 0 {
		close(io.over)
	}
	for _, s := range io.streams {
		if s == nil {
			continue
		}
		if resume && s.done < s.end {
			s.advance(s.end, false)
		}
		io.pump.onRead(s.fd, s.ready)
	}
	return err
}

// rewind returns to the position that the table has.
func (io *stdio) rewind() error {
	was := io.pump.table.get(io.row)
	for i, s := range io.streams {
		if s != nil {
			s.done = min(was.done[i], s.end)
		}
	}
	if io.log == nil {
		return nil
	}
	return io.log.rewind(was.size, was.file)
}

// commit writes the current position to the table.
func (io *stdio) commit() {
	var now progress
	if io.log != nil {
		now.size, now.file = io.log.size, io.log.file
	}
	for i, s := range io.streams {
		if s != nil {
			now.done[i] = s.done
		}
	}
	io.pump.table.put(io.row, now)
}

// reopen opens the log file at the same path again.
func (io *stdio) reopen() error {
	if io.log == nil {
		return nil
	}
	fresh, err := openLog(io.id, io.log.at)
	if err != nil {
		return err
	}
	fresh.lost = io.log.lost
	io.log.close()
	io.log = fresh
	io.commit()
	return nil
}

// ended handles the end of one output.
func (io *stdio) ended(index int) {
	for _, c := range io.clients {
		c.closeOutput(index)
	}
	if io.open--; io.open == 0 {
		close(io.over)
	}
}

// copies returns the descriptors that the daemon stores for the next keeper.
func (io *stdio) copies() wire.FDs {
	fds := wire.FDs{}
	if io.stdin >= 0 {
		fds[wire.FDStdin] = io.stdin
	}
	if io.terminal >= 0 {
		fds[wire.FDTerminal] = io.terminal
	}
	names := [2][2]string{{wire.FDStdout, wire.FDPending0}, {wire.FDStderr, wire.FDPending1}}
	for i, s := range io.streams {
		if s == nil {
			continue
		}
		if s.fd >= 0 && s.fd != io.terminal {
			fds[names[i][0]] = s.fd
		}
		if s.fd >= 0 {
			fds[names[i][1]] = s.pending
		}
	}
	if io.log != nil {
		fds[wire.FDLog] = io.log.fd
	}
	return fds
}

// close writes the remaining output to the log and closes all descriptors.
func (io *stdio) close() {
	for _, c := range io.clients {
		c.close()
	}
	io.clients = nil
	for _, s := range io.streams {
		if s == nil {
			continue
		}
		for s.fd >= 0 && s.waiting() > 0 {
			if before := s.seen; s.fill() || s.seen == before {
				break
			}
		}
		if s.done < s.end {
			s.advance(s.end, true)
		}
		if s.fd >= 0 && s.fd != io.terminal {
			io.pump.drop(s.fd)
		}
		if s.pending >= 0 {
			_ = unix.Close(s.pending)
		}
	}
	io.streams = [2]*stream{}
	io.pump.drop(io.stdin)
	io.pump.drop(io.terminal)
	io.stdin, io.terminal = -1, -1
	io.log.close()
	io.log = nil
}

// Bounds of draining the streams of a container whose init has ended.
const (
	drainQuiet = 100 * time.Millisecond // output counts as ended after this time without any
	drainMost  = 2 * time.Second
)

// drain waits until the output of an ended container is in the log. It waits until all writers have
// closed it. If other processes hold the pipes open, it returns after drainQuiet without output,
// and after drainMost at the latest. Later output is still logged, until Delete. drain must not run
// in the pump.
func (io *stdio) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainMost)
	defer cancel()
	tick := time.NewTicker(drainQuiet / 2)
	defer tick.Stop()
	last, quiet := uint64(0), 0
	for {
		select {
		case <-io.over:
			return
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var seen uint64
		var waiting int
		if io.pump.call(ctx, func() { seen, waiting = io.activity() }) != nil {
			return
		}
		if quiet++; seen != last || waiting > 0 {
			last, quiet = seen, 0
		}
		if quiet >= 2 {
			return
		}
	}
}

func (io *stdio) activity() (seen uint64, waiting int) {
	for _, s := range io.streams {
		if s != nil {
			seen += s.seen
			waiting += s.waiting()
		}
	}
	return seen, waiting
}
