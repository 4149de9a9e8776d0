// Package failpoint lets a test make the process die, fail or wait at a named
// point where a crash would hurt.
//
// Points are armed by the environment variable MICA_FAILPOINTS, read once at
// the first point that is passed: a comma-separated list of name=action with
// the actions kill (SIGKILL of the process itself), error, and sleep:DURATION.
// An unarmed process pays one map look-up in an empty map per point.
package failpoint

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Variable is the name of the environment variable that arms points.
const Variable = "MICA_FAILPOINTS"

var armed = sync.OnceValue(func() map[string]string { return parse(os.Getenv(Variable)) })

// Hit passes the point called name. It returns an error only if the point is
// armed with error, and does not return if it is armed with kill.
func Hit(name string) error {
	points := armed()
	if len(points) == 0 {
		return nil
	}
	return act(name, points[name])
}

func act(name, action string) error {
	switch {
	case action == "":
		return nil
	case action == "kill":
		_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
		select {}
	case action == "error":
		return fmt.Errorf("failpoint %s", name)
	case strings.HasPrefix(action, "sleep:"):
		d, err := time.ParseDuration(strings.TrimPrefix(action, "sleep:"))
		if err != nil {
			return fmt.Errorf("failpoint %s: %w", name, err)
		}
		time.Sleep(d)
		return nil
	}
	return fmt.Errorf("failpoint %s: unknown action %q", name, action)
}

func parse(list string) map[string]string {
	points := map[string]string{}
	for item := range strings.SplitSeq(list, ",") {
		if name, action, ok := strings.Cut(strings.TrimSpace(item), "="); ok {
			points[name] = action
		}
	}
	return points
}
