package server

import (
	"bytes"
	"errors"
	"log"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/testdescriptors"
	"github.com/micarun/mica/runtimeservice/keeper/wire"
)

func TestReserveIsLentAndTakenBack(t *testing.T) {
	r := newReserve(2)
	defer r.close()
	_, raise := testdescriptors.Leave(t, 0)
	var got []int
	take := func() error {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			got = append(got, fd)
		}
		return err
	}
	for range 2 {
		if err := r.lend(take); err != nil {
			t.Error(err)
		}
	}
	if err := r.lend(take); !errors.Is(err, unix.EMFILE) {
		t.Errorf("a reserve of 2 lends a third descriptor: %v", err)
	}
	for _, fd := range got {
		_ = unix.Close(fd)
	}
	raise()
	if r.spend(func() {}); len(r.fds) != 2 {
		t.Errorf("reserve has %d descriptors again, want 2", len(r.fds))
	}
}

// logged is a log whose next line can be waited for.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
	said chan struct{}
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.said <- struct{}{}:
	default:
	}
	return l.text.Write(p)
}

// A keeper that lacks the descriptor to open an orphan's process waits for one. It must not report
// an exit.
func TestRunningProcessIsNotLostForWantOfADescriptor(t *testing.T) {
	st, err := readStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	out := &logged{said: make(chan struct{}, 1)}
	log.SetOutput(out)
	defer log.SetOutput(os.Stderr)
	s := &Server{spare: newReserve(0)}
	_, raise := testdescriptors.Leave(t, 0)
	type result struct {
		fd  int
		err error
	}
	got := make(chan result)
	go func() {
		fd, err := s.openProcess(record{ID: "a", Pid: os.Getpid(), Started: st.started})
		got <- result{fd, err}
	}()
	select {
	case <-out.said:
	case r := <-got:
		t.Fatalf("opened the process %+v without a descriptor", r)
	}
	raise()
	r := <-got
	if r.err != nil {
		t.Fatal(r.err)
	}
	_ = unix.Close(r.fd)
	if text := out.text.String(); !strings.Contains(text, "too many open files") || !strings.Contains(text, "LimitNOFILE") {
		t.Errorf("log = %s", text)
	}
}

// An operation that fails for lack of a descriptor closes the descriptors that it was given.
func TestStreamsWithoutDescriptorsLeaveNone(t *testing.T) {
	given := wire.FDs{}
	for _, name := range []string{wire.FDStdin, wire.FDStdout, wire.FDStderr, wire.FDLog} {
		fd, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		given[name] = fd
	}
	var fds []int
	for _, fd := range given {
		fds = append(fds, fd)
	}
	p, err := newPump()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	_, raise := testdescriptors.Leave(t, 0)
	err = errors.New("pump did not answer")
	_ = p.call(t.Context(), func() { _, err = newStdio(p, record{ID: "a"}, given) })
	raise()
	if !errors.Is(err, unix.EMFILE) {
		t.Fatalf("error = %v", err)
	}
	for _, fd := range fds {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
			t.Errorf("descriptor %d is still open", fd)
			_ = unix.Close(fd)
		}
	}
}
