// Package sdnotify tells the service manager that has started this process how
// the process is: ready, busy with a reload, about to end, still alive.
//
// It is the protocol of sd_notify(3), datagrams of VARIABLE=VALUE lines to the
// socket that NOTIFY_SOCKET names, and nothing else of systemd. Without a service
// manager every call does nothing. It imports the standard library and
// golang.org/x/sys only, because the keeper is linked with it.
package sdnotify

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Manager is the service manager that waits for this process. The zero value is
// none. It is safe for concurrent use.
type Manager struct {
	// Socket is the path of the manager's socket, or "@" and an abstract name; ""
	// if nobody waits.
	Socket string
	// Watchdog is how soon after one Alive the next one must come, lest the
	// manager kill the process; 0 if it does not watch.
	Watchdog time.Duration
}

// variables are how the manager tells what it expects, and what it tells this
// process about its start that is not for its children.
func variables() []string {
	return []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
}

// Take reads from the environment who waits for this process, and removes that
// from the environment: an OCI runtime that inherited it would take itself for the
// service, and wait for its container to be ready.
func Take() (Manager, error) {
	m := Manager{Socket: os.Getenv("NOTIFY_SOCKET")}
	usec, pid := os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID")
	for _, name := range variables() {
		if err := os.Unsetenv(name); err != nil {
			return Manager{}, fmt.Errorf("clear %s: %w", name, err)
		}
	}
	if m.Socket != "" && m.Socket[0] != '/' && m.Socket[0] != '@' {
		return Manager{}, fmt.Errorf("read NOTIFY_SOCKET: %q is neither a path nor an abstract name", m.Socket)
	}
	if usec == "" || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return m, nil
	}
	n, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || n <= 0 {
		return Manager{}, fmt.Errorf("read WATCHDOG_USEC: %q is not a positive number", usec)
	}
	m.Watchdog = time.Duration(n) * time.Microsecond
	return m, nil
}

// Waits tells whether a service manager waits for this process.
func (m Manager) Waits() bool { return m.Socket != "" }

// Ready says that the process serves, also after Reloading. status is for people.
func (m Manager) Ready(status string) error { return m.send("READY=1", "STATUS="+line(status)) }

// Status says how the process is, for people.
func (m Manager) Status(status string) error { return m.send("STATUS=" + line(status)) }

// Reloading says that the process takes over a new configuration, until Ready.
func (m Manager) Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("read monotonic clock: %w", err)
	}
	return m.send("RELOADING=1", "MONOTONIC_USEC="+strconv.FormatInt(now.Nano()/int64(time.Microsecond), 10))
}

// Stopping says that the process has begun to end.
func (m Manager) Stopping() error { return m.send("STOPPING=1", "STATUS=Stopping") }

// Alive feeds the watchdog.
func (m Manager) Alive() error { return m.send("WATCHDOG=1") }

func (m Manager) send(lines ...string) error {
	if !m.Waits() {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("tell service manager %s: make socket: %w", lines[0], err)
	}
	defer func() { _ = unix.Close(fd) }()
	to := &unix.SockaddrUnix{Name: m.Socket}
	if err := unix.Sendto(fd, []byte(strings.Join(lines, "\n")), unix.MSG_NOSIGNAL, to); err != nil {
		return fmt.Errorf("tell service manager %s: %w", lines[0], err)
	}
	return nil
}

func line(text string) string { return strings.ReplaceAll(text, "\n", " ") }
