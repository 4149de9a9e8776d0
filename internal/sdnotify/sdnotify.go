// Package sdnotify notifies the service manager of this process's state: ready, reloading,
// stopping, alive.
//
// It implements the protocol of sd_notify(3), datagrams of VARIABLE=VALUE lines to the socket in
// NOTIFY_SOCKET, and nothing else of systemd. Without a service manager every call does nothing. It
// imports only the standard library and golang.org/x/sys, because the keeper links it.
package sdnotify

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Manager is the service manager of this process. The zero value means none. It may be used
// concurrently. Each method returns the error of sending the notification.
type Manager struct {
	// Socket is the path of the manager's socket, or "@" and an abstract name; "" without a
	// manager.
	Socket string
	// Watchdog is the interval in which the manager expects Alive before it kills the process; 0 if
	// the watchdog is off.
	Watchdog time.Duration
}

// variables are the environment variables by which the manager addresses this process; its children
// must not inherit them.
func variables() []string {
	return []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
}

// Take reads the manager from the environment and removes the variables. An OCI runtime that
// inherited them would act as the service and wait for its container to become ready. An invalid
// variable is an error.
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

// Waits reports whether a service manager expects notifications.
func (m Manager) Waits() bool { return m.Socket != "" }

// Ready reports that the process serves, at the start or after Reloading. status is text for
// people.
func (m Manager) Ready(status string) error { return m.send("READY=1", "STATUS="+line(status)) }

// Status sets the process's status text for people.
func (m Manager) Status(status string) error { return m.send("STATUS=" + line(status)) }

// Reloading reports that the process reloads its configuration, until the next Ready.
func (m Manager) Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("read monotonic clock: %w", err)
	}
	return m.send("RELOADING=1", "MONOTONIC_USEC="+strconv.FormatInt(now.Nano()/int64(time.Microsecond), 10))
}

// Stopping reports that the process has begun to stop.
func (m Manager) Stopping() error { return m.send("STOPPING=1", "STATUS=Stopping") }

// Alive feeds the watchdog.
func (m Manager) Alive() error { return m.send("WATCHDOG=1") }

func (m Manager) send(lines ...string) error {
	if !m.Waits() {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("notify service manager of %s: make socket: %w", lines[0], err)
	}
	defer func() { _ = unix.Close(fd) }()
	to := &unix.SockaddrUnix{Name: m.Socket}
	if err := unix.Sendto(fd, []byte(strings.Join(lines, "\n")), unix.MSG_NOSIGNAL, to); err != nil {
		return fmt.Errorf("notify service manager of %s: %w", lines[0], err)
	}
	return nil
}

func line(text string) string { return strings.ReplaceAll(text, "\n", " ") }
