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
				calls = recordRuntime(t, o, " $* ")
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

// recordRuntime adds the runtime handler "recorded": the node's OCI runtime behind a shell script that
// first appends a line to the returned file. The script's echo gets text.
func recordRuntime(t *testing.T, o *node.Options, text string) (file string) {
	t.Helper()
	runtime := cmp.Or(o.OCIRuntime, "runc")
	file, program := filepath.Join(o.Data, "calls"), filepath.Join(o.Data, "recorded-"+runtime)
	script := fmt.Sprintf("#!/bin/sh\necho \"%s\" >>%s\nexec %s \"$@\"\n", text, file, runtime)
	handler := fmt.Sprintf("[runtimes.recorded]\npath = %q\n", program)
	for path, content := range map[string]string{program: script, filepath.Join(o.Data, "conf.d", "recorded.toml"): handler} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	return file
}
