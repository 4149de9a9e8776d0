package podns

import (
	"context"
	"errors"
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
		var errs []error
		for _, host := range []string{"127.0.0.1", "::1"} {
			var dialer net.Dialer
			// An address literal is dialled by the calling goroutine, so
			// the socket is made on this thread.
			c, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
			if err == nil {
				conn = c
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return nil, fmt.Errorf("connect to port %d of the pod: %w", port, err)
	}
	return conn, nil
}
