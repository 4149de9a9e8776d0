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

// Client sends requests to one keeper. Its methods may be called concurrently.
//
// Errors satisfy
//
//   - errdefs.IsNotFound for an unknown container,
//   - errdefs.IsAlreadyExists for an ID in use,
//   - errdefs.IsInvalidArgument for a malformed argument,
//   - errdefs.IsFailedPrecondition for a request that the container's state does not allow,
//   - errdefs.IsResourceExhausted if the keeper or the daemon has no free file descriptor,
//   - errdefs.IsUnavailable if no keeper answers,
//   - errdefs.IsInternal for other failures in the keeper, such as those of the OCI runtime.
//
// They wrap context.DeadlineExceeded or context.Canceled after the end of ctx, and
// context.DeadlineExceeded if the OCI runtime exceeds its timeout.
//
// If the keeper dies during a request, the Client repeats the request with the next keeper. Create,
// Restore, Start and StartInit are the exception: once sent, they return an error that satisfies
// errdefs.IsUnavailable.
//
// The keeper continues a request whose ctx ends before the answer. A container whose Create
// returned early therefore exists until Delete.
type Client struct {
	o      Options
	events *eventQueue
	end    chan struct{} // closed by Close
	done   chan struct{} // closed when run has ended

	mu       sync.Mutex // guards the rest
	link     *link      // nil while there is no keeper
	why      error      // why link is nil
	changed  chan struct{}
	held     map[string]*storedDescriptors
	lacking  map[string]bool // containers of which the daemon lacked free descriptors to store copies
	fetching bool            // fetchCopies runs
	closed   bool
	stopping bool          // Shutdown was requested: do not look for another keeper
	grace    time.Duration // how long the last keeper's service manager has to start the next; 0 without one
}

// Connect dials the keeper of o.Dir. If none answers, it starts one that is detached from the
// calling process. When the keeper dies, the Client starts another. ctx bounds Connect only.
//
// Connect fails with context.DeadlineExceeded after o.StartTimeout, and with errdefs.IsUnavailable
// if the keeper ends meanwhile. A keeper of another protocol version, a socket of another user and
// a Binary that cannot be run are plain errors.
func Connect(ctx context.Context, o Options) (*Client, error) {
	o = o.withDefaults()
	c := &Client{
		o: o, events: newEventQueue(), end: make(chan struct{}), done: make(chan struct{}),
		changed: make(chan struct{}), held: map[string]*storedDescriptors{}, lacking: map[string]bool{},
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

// Close ends the connection. The keeper and its containers continue to run. Close closes the
// channel of Events; it always returns nil and may be called more than once.
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

// Events returns the channel of exits, one per Client. It delivers the exit of every container that
// is not deleted, including exits before Connect. Events for a slow reader are queued in memory,
// without a limit. Close closes the channel.
func (c *Client) Events() <-chan Event { return c.events.out }

// Create makes the keeper run the runtime's create for one container. It returns the process ID of
// the container's init, in the keeper's PID namespace. A failed Create leaves nothing behind.
//
// The error satisfies errdefs.IsAlreadyExists if the ID is in use. With errdefs.IsInternal, its
// text is the runtime's own message.
func (c *Client) Create(ctx context.Context, a CreateArgs) (pid int, err error) {
	if a.Timeout <= 0 {
		a.Timeout = time.Minute
	}
	// After a.Timeout, the keeper needs time to clean up after a runtime that hangs.
	ctx, cancel := bounded(ctx, 2*a.Timeout+30*time.Second)
	defer cancel()
	var out wire.Created
	err = c.once(ctx, wire.OpCreate, wire.Create(a), &out)
	return out.Pid, err
}

// Restore makes the keeper run the runtime's restore for one container. The container runs when
// Restore returns; otherwise Restore is like Create.
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

// StartInit starts mica-init as pid 1 of a new PID namespace and returns its process ID in the
// keeper's PID namespace. List, Kill and Delete treat it like a container. Errors are those of
// Create.
func (c *Client) StartInit(ctx context.Context, a InitArgs) (pid int, err error) {
	ctx, cancel := bounded(ctx, c.o.RequestTimeout)
	defer cancel()
	var out wire.Created
	err = c.once(ctx, wire.OpInit, wire.Init(a), &out)
	return out.Pid, err
}

// Start starts the container's process, through CreateArgs.StartPipe or by the runtime's start. If
// something kills the process during Start, Start returns nil and the exit is an Event. The error
// satisfies errdefs.IsFailedPrecondition if the process has exited before, errdefs.IsInternal if the
// runtime's start fails, and is context.DeadlineExceeded if the process is not ready within
// CreateArgs.Timeout.
func (c *Client) Start(ctx context.Context, id string) error {
	ctx, cancel := bounded(ctx, c.o.RequestTimeout)
	defer cancel()
	return c.once(ctx, wire.OpStart, wire.Target{ID: id}, nil)
}

// Kill sends sig to the container's init through its pidfd. With all, the keeper runs the runtime's
// kill --all, which signals every process of the container. A container that has ended is not an
// error; an unknown one is errdefs.IsNotFound.
func (c *Client) Kill(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	return c.again(ctx, wire.OpKill, wire.Kill{ID: id, Signal: int(sig), All: all}, nil)
}

// Delete kills the container if it runs and removes the runtime's state of it: by the runtime's
// delete, with --force if it is refused without, or as CreateArgs.RemoveState says. Then the keeper
// closes the container's descriptors and removes its exit record. If Delete killed the container,
// its exit is still an Event. An unknown container is not an error.
func (c *Client) Delete(ctx context.Context, id string) error {
	if err := c.again(ctx, wire.OpDelete, wire.Target{ID: id}, nil); err != nil {
		return err
	}
	c.events.forget(id)
	return nil
}

// ReopenLog makes the keeper open the container's LogPath again. Output written after ReopenLog
// returns goes to the new file; no line is lost or duplicated. The error satisfies
// errdefs.IsFailedPrecondition if the container has ended.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	return c.again(ctx, wire.OpReopen, wire.Target{ID: id}, nil)
}

// Flush returns when everything that the container had written before the call is in its log. The
// error satisfies errdefs.IsFailedPrecondition if the container has ended, and
// errdefs.IsInvalidArgument if the keeper is of an older build, which has no such request.
func (c *Client) Flush(ctx context.Context, id string) error {
	return c.again(ctx, wire.OpFlush, wire.Target{ID: id}, nil)
}

// Resize sets the size of the container's terminal: w columns, h rows. The error satisfies
// errdefs.IsFailedPrecondition if the container has no terminal or has ended.
func (c *Client) Resize(ctx context.Context, id string, w, h uint16) error {
	return c.again(ctx, wire.OpResize, wire.Resize{ID: id, Width: w, Height: h}, nil)
}

// Get returns one container's state, or an error that satisfies errdefs.IsNotFound.
func (c *Client) Get(ctx context.Context, id string) (State, error) {
	var out wire.State
	if err := c.again(ctx, wire.OpGet, wire.Target{ID: id}, &out); err != nil {
		return State{}, err
	}
	return state(out), nil
}

// List returns the state of every container that was created and not deleted, ordered by ID.
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

// Attach connects to the streams of a running container. The caller must close the Attachment. The
// error satisfies errdefs.IsFailedPrecondition if the container has ended.
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

// attach retries with the next keeper if the keeper dies: attachments end with their keeper anyway.
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

// bounded returns ctx with a deadline: its own, or d from now.
func bounded(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

// once sends a request, and repeats it only if no keeper received it.
func (c *Client) once(ctx context.Context, op string, body, out any) error {
	return c.until(ctx, errUnsent, func(l *link) error { return c.on(ctx, l, op, body, out) })
}

// again sends a request, and repeats it with the next keeper if the keeper dies.
func (c *Client) again(ctx context.Context, op string, body, out any) error {
	ctx, cancel := bounded(ctx, c.o.RequestTimeout)
	defer cancel()
	return c.until(ctx, errLost, func(l *link) error { return c.on(ctx, l, op, body, out) })
}

// until calls f with the current link, and again with the next one while f's error is retry.
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

// asError adds the errdefs sentinel to an error from the wire.
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

// coded is an error text from the keeper. It unwraps to the matching errdefs sentinel.
type coded struct {
	text string
	is   error
}

func (e *coded) Error() string { return e.text }
func (e *coded) Unwrap() error { return e.is }

// errUnsent means that no keeper received the request.
var errUnsent = errors.New("request was not sent")

// errLost means that the keeper died, or the connection broke, before the answer.
var errLost = fmt.Errorf("connection to the keeper was lost: %w", errdefs.ErrUnavailable)
