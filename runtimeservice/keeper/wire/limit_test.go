package wire

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/testdescriptors"
)

// Receive reports a message for whose descriptors no number is free, and the connection stays
// usable.
func TestReceiveWithoutDescriptors(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	from, err := NewConn(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	to, err := NewConn(pair[1])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(from.Close(), to.Close()) }()
	send := func(m Message, fds ...int) {
		t.Helper()
		packet, err := Encode(m, nil)
		if err == nil {
			err = from.Send(packet, fds)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	send(Message{ID: 1, Op: OpAdopt, FDs: []string{FDPid, FDLog}}, pair[0], pair[1])
	send(Message{ID: 2, Op: OpGet})
	send(Message{ID: 3, Op: OpAdopt, FDs: []string{FDPid}}, pair[0])

	// There is room for one of two descriptors; Receive must keep neither.
	free, restore := testdescriptors.Leave(t, 1)
	defer restore()
	m, fds, err := to.Receive(nil)
	if m.ID != 1 || len(fds) != 0 || !errors.Is(err, ErrDescriptors) || !Exhausted(err) {
		t.Errorf("Receive = %+v, %v, %v", m, fds, err)
	}
	if now, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0); err != nil || now != free {
		t.Errorf("the lowest free descriptor is %d (%v), was %d", now, err, free)
	} else {
		_ = unix.Close(now)
	}
	if m, _, err := to.Receive(nil); m.ID != 2 || err != nil {
		t.Errorf("Receive = %+v, %v", m, err)
	}
	m, fds, err = to.Receive(nil)
	if m.ID != 3 || len(fds) != 1 || err != nil {
		t.Errorf("Receive = %+v, %v, %v", m, fds, err)
	}
	fds.Close()
}

func TestNameLimitLeavesOtherErrors(t *testing.T) {
	if err := NameLimit(os.ErrExist, "a", "b"); !errors.Is(err, os.ErrExist) || err.Error() != os.ErrExist.Error() {
		t.Error(err)
	}
	if NameLimit(nil, "a", "b") != nil {
		t.Error("NameLimit(nil) is an error")
	}
}
