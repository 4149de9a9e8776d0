// Package failpoint lets a test kill, fail or delay the process at a named point, to test crashes
// at exactly that point.
//
// The environment variable MICA_FAILPOINTS arms points; it is read once, at the first point that
// the process reaches. It is a comma-separated list of name=action. The actions are kill (the
// process sends itself SIGKILL), error, and sleep:DURATION. In a process without armed points, each
// point costs one check of an empty map.
package failpoint

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Variable is the environment variable that arms points.
const Variable = "MICA_FAILPOINTS"

var armed = sync.OnceValue(func() map[string]string { return parse(os.Getenv(Variable)) })

// Hit executes the action of the point called name, if it is armed. It returns an error for the
// action error and for an invalid action, and does not return from kill. It may be called
// concurrently.
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
