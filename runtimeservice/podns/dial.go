package podns

import (
	"context"
	"fmt"
	"net"
	"strconv"
)

// DialTCP connects to port on the loopback address of the network namespace pinned at nsPath: first
// 127.0.0.1, then ::1. An empty nsPath is the caller's namespace. The connection may be used from
// any goroutine. ctx bounds the connecting. The error contains both attempts. DialTCP is safe for
// concurrent use.
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

// dialHere connects from the calling thread's namespace. That works because the dialer resolves and
// dials an address literal on the calling goroutine.
func dialHere(ctx context.Context, host string, port uint16) (net.Conn, error) {
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
}
