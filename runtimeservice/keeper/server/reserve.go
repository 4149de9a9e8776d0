package server

import (
	"os"
	"sync"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

// Sizes of the keeper's reserves of descriptors.
const (
	// spareSteps is for short steps with no free descriptor: accept a daemon, write an exit record,
	// count OOM kills, open a process. Each needs one or two at a time. Accepted connections and
	// opened processes keep theirs.
	spareSteps = 16
	// spareRuns is for a run of the OCI runtime: a memfd, two of /dev/null, two of a pipe, a pidfd,
	// and those for reading the runtime's log. Or for opening a log.
	spareRuns = 16
)

// reserve keeps descriptors open for the steps that must not fail for lack of one: those that end
// containers, record exits or accept a daemon. A step that finds none closes the reserve while it
// runs.
type reserve struct {
	size int

	mu  sync.Mutex // guards fds; held by the step that uses the reserve
	fds []int
}

func newReserve(size int) *reserve {
	r := &reserve{size: size}
	r.refill()
	return r
}

// lend runs f. If f fails for lack of a descriptor, lend closes the reserve and runs f again. A
// failed f must leave nothing behind.
func (r *reserve) lend(f func() error) error {
	err := f()
	if !wire.Exhausted(err) {
		return err
	}
	r.spend(func() { err = f() })
	return err
}

// spend runs f with the reserve closed.
func (r *reserve) spend(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.release()
	defer r.refill()
	f()
}

func (r *reserve) release() {
	for _, fd := range r.fds {
		_ = unix.Close(fd)
	}
	r.fds = r.fds[:0]
}

// refill opens as many descriptors as it can; the next use tries again.
func (r *reserve) refill() {
	for len(r.fds) < r.size {
		fd, err := unix.Open(os.DevNull, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		r.fds = append(r.fds, fd)
	}
}

func (r *reserve) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.release()
}

// asReply adds the limit's name to an error for lack of descriptors, and gives it CodeExhausted.
func asReply(err error) *wire.Error {
	if !wire.Exhausted(err) {
		return wire.AsError(err)
	}
	return wire.Errorf(wire.CodeExhausted, "%v", wire.NameLimit(err, "mica-keeper", "mica-keeper.service, or of micad.service if micad started the keeper"))
}
