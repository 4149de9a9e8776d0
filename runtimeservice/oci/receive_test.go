package oci

import (
	"errors"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/testdescriptors"
)

// Receiving a terminal without a free descriptor says so.
func TestReceiveWithoutDescriptors(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range pair {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ends[i] = c.(*net.UnixConn)
	}
	if _, _, err := ends[0].WriteMsgUnix([]byte("terminal"), unix.UnixRights(0), nil); err != nil {
		t.Fatal(err)
	}
	_, restore := testdescriptors.Leave(t, 0)
	f, err := receiveFile(ends[1])
	restore()
	if f != nil || !errors.Is(err, unix.EMFILE) {
		t.Errorf("receiveFile = %v, %v", f, err)
	}
}
