package keeper

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/micarun/mica/runtimeservice/keeper/wire"
)

// Client speaks to one keeper. Its methods may be called concurrently.
//
// Errors satisfy errdefs.IsNotFound for an unknown container,
// errdefs.IsAlreadyExists for a taken ID, errdefs.IsFailedPrecondition for a
// request that does not fit the container's state, errdefs.IsUnavailable when
// the keeper died in the middle of a Create, Start, StartInit or Attach, and
// context.DeadlineExceeded. All other requests are repeated with the next keeper.
//
// A request goes on in the keeper when its ctx ends before the answer. A
// container whose Create was given up on is there until Delete.
type Client struct {
	o      Options
	events *eventQueue
	end    chan struct{} // closed by Close
	done   chan struct{} // closed when run has ended

	mu       sync.Mutex // guards the rest
	link     *link      // nil while there is no keeper
	why      error      // there is none
	changed  chan struct{}
	held     map[string]*custody
	lacking  map[string]bool // containers whose copies found no free descriptor
	fetching bool            // fetchCopies runs
	closed   bool
	stopping bool          // Shutdown was asked for: do not look for another keeper
	grace    time.Duration // how long the last keeper's service manager has to start the next; 0 without one
}

// Connect dials the keeper of o.Dir and starts one, detached from the calling
// process, if none answers. The Client goes on when the keeper dies: it starts
// another. ctx bounds Connect only.
func Connect(ctx context.Context, o Options) (*Client, error) {
	o = o.withDefaults()
	c := &Client{
		o: o, events: newEventQueue(), end: make(chan struct{}), done: make(chan struct{}),
		changed: make(chan struct{}), held: map[string]*custody{}, lacking: map[string]bool{},
	}
	l, err := c.connect(ctx)
	if err != nil {
		c.events.close()
		return nil, err
	}
	go c.run(l)
	return c, nil
}

func (o Options) withDefaults() Options {
	if o.StartTimeout <= 0 {
		o.StartTimeout = 10 * time.Second
	}
	if o.RequestTimeout <= 0 {
		o.RequestTimeout = 2 * time.Minute
	}
	return o
}

// Close ends the connection and leaves the keeper and its containers running.
// It closes the channel of Events.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	close(c.end)
	l := c.link
	c.mu.Unlock()
	if l != nil {
		l.close()
	}
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.held {
		c.drop(id)
	}
	c.events.close()
	return nil
}

// Events delivers every exit, also of containers that ended before Connect
// and were not deleted. There is one channel per Client; it is closed by
// Close. Events wait in memory for a slow reader.
func (c *Client) Events() <-chan Event { return c.events.out }

// Create makes the keeper run the runtime's create for one container and
// returns the pid of its init. A failed Create leaves nothing behind; its
// error carries the runtime's own message.
func (c *Client) Create(ctx context.Context, a CreateArgs) (pid int, err error) {
	if a.Timeout <= 0 {
		a.Timeout = time.Minute
	}
	// The keeper needs its time to clean up after a runtime that hung.
	ctx, cancel := bounded(ctx, 2*a.Timeout+30*time.Second)
	defer cancel()
	var out wire.Created
	err = c.once(ctx, wire.OpCreate, wire.Create(a), &out)
	return out.Pid, err
}

// Restore makes the keeper run the runtime's restore for one container, which
// then runs, and returns the pid of its first process. Otherwise it is like
// Create.
func (c *Client) Restore(ctx context.Context, a RestoreArgs) (pid int, err error) {
	if a.Timeout <= 0 {
		a.Timeout = time.Minute
	}
	ctx, cancel := bounded(ctx, 2*a.Timeout+30*time.Second)
	defer cancel()
	var out wire.Created
	err = c.once(ctx, wire.OpRestore, wire.Restore{Create: wire.Create(a.CreateArgs), Images: a.Images, Work: a.Work, Flags: a.Flags}, &out)
	return out.Pid, err
}

// StartInit starts mica-init as pid 1 of a new PID namespace. It is then
// listed, killed and deleted like a container.
func (c *Client) StartInit(ctx context.Context, a InitArgs) (pid int, err error) {
	ctx, cancel := bounded(ctx, c.o.RequestTimeout)
	defer cancel()
	var out wire.Created
	err = c.once(ctx, wire.OpInit, wire.Init(a), &out)
	return out.Pid, err
}

// Start runs the runtime's start. A process that is killed just then counts as
// started; its exit tells.
func (c *Client) Start(ctx context.Context, id string) error {
	ctx, cancel := bounded(ctx, c.o.RequestTimeout)
	defer cancel()
	return c.once(ctx, wire.OpStart, wire.Target{ID: id}, nil)
}

// Kill sends sig to the container's init by its pidfd, or with all to every
// process of the container by the runtime's kill --all. It is no error if the
// container has ended.
func (c *Client) Kill(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	return c.again(ctx, wire.OpKill, wire.Kill{ID: id, Signal: int(sig), All: all}, nil)
}

// Delete kills the container if it runs, runs the runtime's delete --force and
// makes the keeper forget the container, its descriptors and its exit record.
// The exit of a container that Delete has killed is still an Event. Unknown
// containers are no error.
func (c *Client) Delete(ctx context.Context, id string) error {
	if err := c.again(ctx, wire.OpDelete, wire.Target{ID: id}, nil); err != nil {
		return err
	}
	c.events.forget(id)
	return nil
}

// ReopenLog opens the container's LogPath anew: lines that the container
// writes after the return go to the new file, none is lost or doubled.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	return c.again(ctx, wire.OpReopen, wire.Target{ID: id}, nil)
}

// Flush returns when what the container had written before is in its log.
// A keeper of an older build answers that it does not know the request
// (errdefs.IsInvalidArgument).
func (c *Client) Flush(ctx context.Context, id string) error {
	return c.again(ctx, wire.OpFlush, wire.Target{ID: id}, nil)
}

// Resize sets the size of the container's terminal in characters.
func (c *Client) Resize(ctx context.Context, id string, w, h uint16) error {
	return c.again(ctx, wire.OpResize, wire.Resize{ID: id, Width: w, Height: h}, nil)
}

// Get returns one container's state.
func (c *Client) Get(ctx context.Context, id string) (State, error) {
	var out wire.State
	if err := c.again(ctx, wire.OpGet, wire.Target{ID: id}, &out); err != nil {
		return State{}, err
	}
	return state(out), nil
}

// List returns every container that was created and not deleted, by ID.
func (c *Client) List(ctx context.Context) ([]State, error) {
	var states []State
	after := ""
	for {
		var page wire.List
		if err := c.again(ctx, wire.OpList, wire.List{After: after}, &page); err != nil {
			return nil, err
		}
		for _, s := range page.States {
			states = append(states, state(s))
		}
		if !page.More {
			return states, nil
		}
		after = page.States[len(page.States)-1].ID
	}
}

// Attach connects to the streams of a running container.
func (c *Client) Attach(ctx context.Context, id string, a AttachArgs) (*Attachment, error) {
	ctx, cancel := bounded(ctx, c.o.RequestTimeout)
	defer cancel()
	fds, err := c.attach(ctx, wire.Attach{ID: id, Stdin: a.Stdin, Stdout: a.Stdout, Stderr: a.Stderr})
	if err != nil {
		return nil, err
	}
	defer fds.Close()
	out := &Attachment{}
	if fd := fds.Take(wire.FDStdin); fd >= 0 {
		out.Stdin = asFile(fd, "stdin")
	}
	if fd := fds.Take(wire.FDStdout); fd >= 0 {
		out.Stdout = asFile(fd, "stdout")
	}
	if fd := fds.Take(wire.FDStderr); fd >= 0 {
		out.Stderr = asFile(fd, "stderr")
	}
	return out, nil
}

// attach asks the next keeper if the one asked dies: an attachment does not
// outlive its keeper anyway.
func (c *Client) attach(ctx context.Context, a wire.Attach) (fds wire.FDs, err error) {
	err = c.until(ctx, errLost, func(l *link) error {
		_, fds, err = l.call(ctx, wire.OpAttach, a, nil)
		return asError(err)
	})
	return fds, err
}

func state(s wire.State) State {
	out := State{ID: s.ID, Pid: s.Pid, Running: s.Running}
	if s.Exit != nil {
		e := Exit(*s.Exit)
		out.Exit = &e
	}
	return out
}

// bounded gives ctx a deadline if it has none.
func bounded(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

// once makes a request that is repeated only if no keeper has seen it.
func (c *Client) once(ctx context.Context, op string, body, out any) error {
	return c.until(ctx, errUnsent, func(l *link) error { return c.on(ctx, l, op, body, out) })
}

// again makes a request, and makes it of the next keeper if the one asked
// dies.
func (c *Client) again(ctx context.Context, op string, body, out any) error {
	ctx, cancel := bounded(ctx, c.o.RequestTimeout)
	defer cancel()
	return c.until(ctx, errLost, func(l *link) error { return c.on(ctx, l, op, body, out) })
}

// until repeats f with the next link as long as it fails by retry and ctx lasts.
func (c *Client) until(ctx context.Context, retry error, f func(*link) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("ask the keeper: %w", err)
		}
		l, err := c.current(ctx)
		if err != nil {
			return err
		}
		if err = f(l); !errors.Is(err, retry) {
			return err
		}
	}
}

func (c *Client) on(ctx context.Context, l *link, op string, body, out any) error {
	m, fds, err := l.call(ctx, op, body, nil)
	fds.Close()
	if err != nil {
		return asError(err)
	}
	if out == nil {
		return nil
	}
	return m.Into(out)
}

// asError gives an error from the wire its errdefs sentinel.
func asError(err error) error {
	var e *wire.Error
	if err == nil || !errors.As(err, &e) {
		return err
	}
	switch e.Code {
	case wire.CodeNotFound:
		return &coded{e.Text, errdefs.ErrNotFound}
	case wire.CodeExists:
		return &coded{e.Text, errdefs.ErrAlreadyExists}
	case wire.CodePrecondition:
		return &coded{e.Text, errdefs.ErrFailedPrecondition}
	case wire.CodeInvalid:
		return &coded{e.Text, errdefs.ErrInvalidArgument}
	case wire.CodeExhausted:
		return &coded{e.Text, errdefs.ErrResourceExhausted}
	case wire.CodeUnavailable:
		return &coded{e.Text, errdefs.ErrUnavailable}
	case wire.CodeDeadline:
		return &coded{e.Text, context.DeadlineExceeded}
	}
	return &coded{e.Text, errdefs.ErrInternal}
}

// coded is a text of the keeper's with the meaning that errors.Is finds.
type coded struct {
	text string
	is   error
}

func (e *coded) Error() string { return e.text }
func (e *coded) Unwrap() error { return e.is }

// errUnsent says that the request did not reach a keeper.
var errUnsent = errors.New("request was not sent")

// errLost says that the keeper died, or the connection broke, before the
// answer.
var errLost = fmt.Errorf("connection to the keeper was lost: %w", errdefs.ErrUnavailable)
