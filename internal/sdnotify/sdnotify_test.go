package sdnotify

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// listen is a service manager that records notifications.
func listen(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func hear(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	packet := make([]byte, 4096)
	n, err := conn.Read(packet)
	if err != nil {
		t.Fatal(err)
	}
	return string(packet[:n])
}

func TestEveryState(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), "@mica-sdnotify-test-" + strconv.Itoa(os.Getpid())} {
		conn := listen(t, name)
		m := Manager{Socket: name}
		for want, say := range map[string]func() error{
			"^READY=1\nSTATUS=Serving two lines$":     func() error { return m.Ready("Serving\ntwo lines") },
			"^STATUS=Serving two lines$":              func() error { return m.Status("Serving\ntwo lines") },
			"^RELOADING=1\nMONOTONIC_USEC=[1-9]\\d*$": m.Reloading,
			"^STOPPING=1\nSTATUS=Stopping$":           m.Stopping,
			"^WATCHDOG=1$":                            m.Alive,
		} {
			if err := say(); err != nil {
				t.Fatal(err)
			}
			if got := hear(t, conn); !regexp.MustCompile(want).MatchString(got) {
				t.Errorf("%s: received %q, want %s", name, got, want)
			}
		}
	}
}

func TestTake(t *testing.T) {
	self := strconv.Itoa(os.Getpid())
	for name, tc := range map[string]struct {
		socket, usec, pid string
		want              Manager
		fails             bool
	}{
		"nobody":             {},
		"no watchdog":        {socket: "/run/x", want: Manager{Socket: "/run/x"}},
		"watchdog":           {socket: "@x", usec: "60000000", pid: self, want: Manager{Socket: "@x", Watchdog: time.Minute}},
		"watchdog for all":   {socket: "/x", usec: "1500000", want: Manager{Socket: "/x", Watchdog: 1500 * time.Millisecond}},
		"another's watchdog": {socket: "/x", usec: "60000000", pid: "1", want: Manager{Socket: "/x"}},
		"relative socket":    {socket: "x", fails: true},
		"nonsense watchdog":  {socket: "/x", usec: "soon", fails: true},
		"negative watchdog":  {socket: "/x", usec: "-1", fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			for key, value := range map[string]string{"NOTIFY_SOCKET": tc.socket, "WATCHDOG_USEC": tc.usec, "WATCHDOG_PID": tc.pid} {
				t.Setenv(key, value)
			}
			got, err := Take()
			if got != tc.want || (err != nil) != tc.fails {
				t.Errorf("Take = %+v, %v; want %+v", got, err, tc.want)
			}
			for _, key := range variables() {
				if value, ok := os.LookupEnv(key); ok {
					t.Errorf("%s=%s is visible to children", key, value)
				}
			}
		})
	}
}

func TestNoManagerIsNoError(t *testing.T) {
	var m Manager
	if m.Waits() || m.Ready("x") != nil || m.Reloading() != nil || m.Stopping() != nil || m.Alive() != nil {
		t.Error("Ready succeeds without a listening manager")
	}
}

func TestAbsentManagerIsAnError(t *testing.T) {
	m := Manager{Socket: filepath.Join(t.TempDir(), "nobody")}
	if err := m.Alive(); err == nil {
		t.Error("no error")
	}
}
