package podns

import (
	"context"
	"fmt"
	"net"
	"strconv"
)

// DialTCP connects to port on the loopback address of the network namespace
// pinned at nsPath, "" being the caller's own: first 127.0.0.1, then ::1. The
// connection works from any goroutine. ctx bounds the connecting; the error
// names both attempts.
func DialTCP(ctx context.Context, nsPath string, port uint16) (net.Conn, error) {
	var conn net.Conn
	err := Do(nsPath, func() error {
		c, err4 := dialHere(ctx, "127.0.0.1", port)
		if err4 != nil {
			var err6 error
			if c, err6 = dialHere(ctx, "::1", port); err6 != nil {
				return fmt.Errorf("%w; %w", err4, err6)
			}
		}
		conn = c
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("connect to port %d of the pod: %w", port, err)
	}
	return conn, nil
}

// dialHere connects from the namespace of the calling thread: an address
// literal is resolved and dialled by the calling goroutine.
func dialHere(ctx context.Context, host string, port uint16) (net.Conn, error) {
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
}
