package keeper

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
)

// On a connection that is closed before the send, call returns errLost and errUnsent, so that the
// request goes to the next keeper.
func TestSendOnAClosedConnectionIsUnsent(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(pair[1]) }()
	conn, err := wire.NewConn(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	l := &link{conn: conn, sending: make(chan struct{}, 1), waiting: map[uint64]chan answer{}}
	l.close()
	_, _, err = l.call(t.Context(), wire.OpGet, nil, nil)
	if !errors.Is(err, errUnsent) || !errors.Is(err, errLost) {
		t.Errorf("error = %v, want errLost and errUnsent", err)
	}
	if !l.isLost() {
		t.Error("the link accepts another request")
	}
}
