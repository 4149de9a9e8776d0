package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/micarun/mica/e2e/node"
)

// With pods.exec_by_runtime, the OCI runtime starts every exec; by default only those whose seccomp
// filter is not known yet, of which this container has none.
func TestExecByRuntime(t *testing.T) {
	for byRuntime, want := range map[bool]int{true: 2, false: 0} {
		t.Run(fmt.Sprint(byRuntime), func(t *testing.T) {
			var calls string
			f := startOn(t, func(o *node.Options) {
				o.ExecByRuntime = byRuntime
				calls = filepath.Join(o.Data, "calls")
				runtime := cmp.Or(o.OCIRuntime, "runc")
				program := filepath.Join(o.Data, "recorded-"+runtime)
				script := "#!/bin/sh\necho \" $* \" >>" + calls + "\nexec " + runtime + " \"$@\"\n"
				handler := fmt.Sprintf("[runtimes.recorded]\npath = %q\n", program)
				for path, text := range map[string]string{program: script, filepath.Join(o.Data, "conf.d", "recorded.toml"): handler} {
					if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
						t.Fatal(err)
					}
				}
			})
			config := f.podConfig()
			id, err := f.Runtime.RunPodSandbox(f.ctx, config, "recorded")
			f.no(err)
			c := f.start(pod{id, config}, f.containerConfig(busyboxImage, "sleep", "600"))
			for range 2 {
				if got := f.exec(c, "echo", "done"); got != "done\n" {
					t.Errorf("exec returned %q", got)
				}
			}
			text, err := os.ReadFile(calls)
			f.no(err)
			if got := strings.Count(string(text), " exec "); got != want {
				t.Errorf("the OCI runtime started %d of 2 execs, want %d: %s", got, want, text)
			}
		})
	}
}
