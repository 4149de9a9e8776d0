package keeper

import (
	"context"
	"errors"
	"syscall"
)

// errUnwritten marks methods whose bodies land with the server.
var errUnwritten = errors.New("keeper: not written yet")

// Client speaks to one keeper. Its methods may be called concurrently.
//
// Errors satisfy errdefs.IsNotFound for an unknown container,
// errdefs.IsAlreadyExists for a taken ID, errdefs.IsFailedPrecondition for a
// request that does not fit the container's state, errdefs.IsUnavailable while no
// keeper can be reached, and context.DeadlineExceeded.
type Client struct {
	events chan Event
}

// Connect dials the keeper of o.Dir and starts one, detached from the calling
// process, if none answers.
func Connect(ctx context.Context, o Options) (*Client, error) { return nil, errUnwritten }

// Close ends the connection and leaves the keeper and its containers running.
func (c *Client) Close() error { return errUnwritten }

// Shutdown ends the keeper. It fails with FailedPrecondition while the keeper
// has containers, exited ones included, that were not deleted.
func (c *Client) Shutdown(ctx context.Context) error { return errUnwritten }

// Create makes the keeper run the runtime's create for one container and
// returns the pid of its init. A failed Create leaves nothing behind; its
// error carries the runtime's own message.
func (c *Client) Create(ctx context.Context, a CreateArgs) (pid int, err error) {
	return 0, errUnwritten
}

// Start runs the runtime's start.
func (c *Client) Start(ctx context.Context, id string) error { return errUnwritten }

// Kill sends sig to the container's init by its pidfd, or with all to every
// process of the container by the runtime's kill --all. It is no error if the
// container has ended.
func (c *Client) Kill(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	return errUnwritten
}

// Delete runs the runtime's delete --force and makes the keeper forget the
// container, its descriptors and its exit record. Unknown containers are no
// error.
func (c *Client) Delete(ctx context.Context, id string) error { return errUnwritten }

// ReopenLog opens the container's LogPath anew; the lines before the call's
// return go to the old file, those after it to the new one, none is lost.
func (c *Client) ReopenLog(ctx context.Context, id string) error { return errUnwritten }

// Resize sets the size of the container's terminal in characters.
func (c *Client) Resize(ctx context.Context, id string, w, h uint16) error { return errUnwritten }

// Attach connects to the streams of a running container.
func (c *Client) Attach(ctx context.Context, id string, a AttachArgs) (*Attachment, error) {
	return nil, errUnwritten
}

// List returns every container that was created and not deleted, by ID.
func (c *Client) List(ctx context.Context) ([]State, error) { return nil, errUnwritten }

// Get returns one container's state.
func (c *Client) Get(ctx context.Context, id string) (State, error) { return State{}, errUnwritten }

// Events delivers every exit, also of containers that ended before Connect
// and were not deleted. There is one channel per Client; it is closed by
// Close. Events wait in memory for a slow reader.
func (c *Client) Events() <-chan Event { return c.events }

// StartInit starts mica-init as pid 1 of a new PID namespace. It is then
// listed, killed and deleted like a container.
func (c *Client) StartInit(ctx context.Context, a InitArgs) (pid int, err error) {
	return 0, errUnwritten
}
