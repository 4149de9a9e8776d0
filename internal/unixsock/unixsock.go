// Package unixsock listens on a named unix socket for a daemon.
//
// Listen replaces the socket of a dead process. It rejects a path where a live process listens, or
// where a file is not a socket. The socket is bound under a temporary name and renamed, so that no
// client connects before owner and mode are set, and the process's umask is not changed.
package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// bornSuffix is appended to the socket's name until its owner and mode are set.
const bornSuffix = ".new"

// MaxPath is the length in bytes of the longest path that Listen can bind: the size of sun_path in
// unix(7), less its terminating zero and the suffix of the temporary name.
const MaxPath = 107 - len(bornSuffix)

// probeTimeout bounds the check whether another process already listens.
const probeTimeout = 2 * time.Second

// Args describes a socket. Listen creates missing parent directories with mode 0711.
type Args struct {
	Path  string
	Mode  fs.FileMode
	Group string // name or number of the owning group; "" is group 0
}

// Listener is a listening unix socket. It may be used concurrently. Close removes its name if the
// name still refers to this socket.
type Listener struct {
	*net.UnixListener
	path string
	ino  uint64
}

// Listen binds the socket. The error is errdefs.ErrAlreadyExists if another process listens on the
// path, or if the file there is not a socket.
func Listen(ctx context.Context, args Args) (*Listener, error) {
	l, err := listen(ctx, args)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", args.Path, err)
	}
	return l, nil
}

func listen(ctx context.Context, args Args) (*Listener, error) {
	gid, err := lookupGroup(args.Group)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(args.Path), 0o711); err != nil {
		return nil, err
	}
	if err := refuseTaken(ctx, args.Path); err != nil {
		return nil, err
	}
	born := args.Path + bornSuffix
	if err := os.Remove(born); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: born, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	ino, err := publish(born, gid, args)
	if err != nil {
		_ = l.Close()
		_ = os.Remove(born)
		return nil, err
	}
	return &Listener{UnixListener: l, path: args.Path, ino: ino}, nil
}

func publish(born string, gid int, args Args) (ino uint64, err error) {
	if err := os.Chown(born, -1, gid); err != nil {
		return 0, err
	}
	if err := os.Chmod(born, args.Mode); err != nil {
		return 0, err
	}
	if ino, err = inode(born); err != nil {
		return 0, err
	}
	return ino, os.Rename(born, args.Path)
}

func inode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Ino, nil
}

// Close stops listening and removes the socket's name. It is idempotent.
func (l *Listener) Close() error {
	if ino, err := inode(l.path); err == nil && ino == l.ino {
		_ = os.Remove(l.path)
	}
	if err := l.UnixListener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// refuseTaken returns nil if path does not exist or is a socket without a listener.
func refuseTaken(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("the file there is not a socket: %w", errdefs.ErrAlreadyExists)
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		_ = conn.Close()
	}
	return fmt.Errorf("another process listens on it: %w", errdefs.ErrAlreadyExists)
}

func lookupGroup(group string) (int, error) {
	if group == "" {
		return 0, nil
	}
	if gid, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(gid), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}
