package keeper

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// dyingStart runs runc, except for start, where it runs the test's commands. The last argument is
// the container's ID.
const dyingStart = `#!/bin/sh
for arg; do
	[ "$before" != --root ] || root=$arg
	[ "$arg" != start ] || start=yes
	before=$arg
done
[ -n "$start" ] || exec runc "$@"
die() { kill -9 "$(sed 's/.*"init_process_pid":\([0-9]*\).*/\1/' "$root/$arg/state.json")"; }
`

// A process that is killed during Start counts as started, and its exit reports the signal,
// whatever the runtime prints. Start returns an error if it fails for another reason.
func TestKilledAtStart(t *testing.T) {
	for name, tc := range map[string]struct{ does, says string }{
		"crun waits for a reader": {`die; printf 0 >"$root/$arg/exec.fifo"`, ""},
		"crun loses its reader":   {`die; echo "write to exec.fifo: Broken pipe" >&2; exit 1`, ""},
		"runc finds it dead":      {`die; exec runc "$@"`, ""},
		"a hook fails":            {`die; echo "error running hook #0: exit status 3" >&2; exit 1`, "error running hook"},
		"the runtime fails":       {`echo "no memory" >&2; exit 1`, "no memory"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			runtime := filepath.Join(t.TempDir(), "dying")
			if err := os.WriteFile(runtime, []byte(dyingStart+tc.does), 0o755); err != nil {
				t.Fatal(err)
			}
			a := n.args(n.newID(), spec{script: "sleep 1000"})
			a.Runtime[0] = runtime
			n.create(a)
			began := time.Now()
			err := n.client.Start(t.Context(), a.ID)
			if took := time.Since(began); took > a.Timeout/2 {
				t.Errorf("the start took %v", took)
			}
			if tc.says != "" {
				if err == nil || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("Start = %v, want %q", err, tc.says)
				}
				return
			}
			if err != nil {
				t.Errorf("Start = %v", err)
			}
			if exit := n.exit(a.ID); exit.Code != 137 || exit.Signal != 9 {
				t.Errorf("exit = %+v", exit)
			}
			if err := n.client.Start(t.Context(), a.ID); err != nil {
				t.Errorf("Start of a killed container: %v", err)
			}
		})
	}
}
