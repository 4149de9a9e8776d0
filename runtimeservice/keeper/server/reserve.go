package server

import (
	"os"
	"sync"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

// Sizes of the keeper's reserves of descriptors.
const (
	// spareSteps lets the keeper accept a daemon, write an exit record, count OOM
	// kills and open a process when it has no other descriptor: each takes one or
	// two at a time. An accepted connection and an opened process keep theirs.
	spareSteps = 16
	// spareRuns lets it run an OCI runtime, which takes a memfd, two of /dev/null, two of
	// a pipe, a pidfd and what reading the runtime's log needs; or open a log.
	spareRuns = 16
)

// reserve is a number of descriptors that are kept open for the steps that must not
// fail for want of one: those that end containers, record exits, and let a daemon
// in. A step that finds none gives the reserve up for as long as it lasts.
//
// Its methods may be called concurrently.
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

// lend runs f, and runs it again with the reserve given up if f lacked a
// descriptor. f must leave nothing behind when it fails so.
func (r *reserve) lend(f func() error) error {
	err := f()
	if !wire.Exhausted(err) {
		return err
	}
	r.spend(func() { err = f() })
	return err
}

// spend gives the reserve up while f runs.
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

// refill takes what it can get: the next use tries again.
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

// asReply gives an error that is a lack of descriptors the limit's name and its code.
func asReply(err error) *wire.Error {
	if !wire.Exhausted(err) {
		return wire.AsError(err)
	}
	return wire.Errorf(wire.CodeExhausted, "%v", wire.NameLimit(err, "mica-keeper", "mica-keeper.service, or of micad.service where micad starts the keeper"))
}
