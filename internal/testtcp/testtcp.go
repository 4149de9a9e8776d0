// Package testtcp makes TCP connections for tests. Both ends belong to the test. Unlike the ends of
// net.Pipe they can be closed in one direction, can be reset, and hold sent data in the kernel's
// buffers. The package is for tests only: no program of Mica links it.
package testtcp

import (
	"net"
	"testing"
)

// Pair returns both ends of a connection over loopback. They are closed when the test ends.
func Pair(t testing.TB) (*net.TCPConn, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a.(*net.TCPConn), b.(*net.TCPConn)
}
