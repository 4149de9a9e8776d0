package checkpoint

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// program makes an executable that acts as CRIU.
func program(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "criu")
	replace(t, path, body)
	return path
}

func replace(t *testing.T, path, body string) {
	t.Helper()
	fresh := path + ".new"
	if err := os.WriteFile(fresh, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(fresh, path); err != nil {
		t.Fatal(err)
	}
}

const tooOld = `echo "Version: 3.15"; exit 0`

// newKernel is the output of CRIU 3.17 on a kernel newer than itself.
const newKernel = `
if [ "$1" = --version ]; then echo "Version: 3.17.1"; exit; fi
echo "Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds" >&2
echo "Warn  (criu/x.c:1): something else" >&2
echo "Error (criu/crtools.c:260): Could not initialize kernel features detection." >&2
exit 1`

const works = `if [ "$1" = --version ]; then echo "Version: 4.1.1"; else echo "Looks good."; fi`

func TestCriuReady(t *testing.T) {
	for name, tc := range map[string]struct{ body, reason string }{
		"works":           {works, ""},
		"too old":         {tooOld, `CRIU "3.15", and 3.16 or newer is needed`},
		"kernel too new":  {newKernel, "CRIU 3.17.1 does not work with this kernel: criu check: vdso: Unexpected rt vDSO area bounds; Could not initialize"},
		"says nothing":    {"exit 0", `CRIU "", and 3.16`},
		"does not run":    {"exit 7", ": exit status 7"},
		"fails in silent": {`[ "$1" = --version ] && echo "Version: 4.0" && exit 0; exit 3`, "criu check: exit status 3"},
	} {
		t.Run(name, func(t *testing.T) {
			path := program(t, tc.body)
			p, err := NewCriu(path).Ready(t.Context())
			if tc.reason == "" {
				if err != nil || p != (Program{Path: path, Version: "4.1.1"}) {
					t.Errorf("Ready = %+v, %v", p, err)
				}
				return
			}
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tc.reason) {
				t.Errorf("Ready = %+v, %v, want %q", p, err, tc.reason)
			}
		})
	}
	if _, err := NewCriu("/none/criu").Ready(t.Context()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "/none/criu") {
		t.Errorf("Ready without the program = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := NewCriu(program(t, works)).Ready(ctx); !errors.Is(err, context.Canceled) || errdefs.IsFailedPrecondition(err) {
		t.Errorf("Ready after the end of its context = %v", err)
	}
}

// TestCriuIsAskedOnce holds that the probe's result is cached, and that the probe runs again when
// the program has changed or a failure has expired.
func TestCriuIsAskedOnce(t *testing.T) {
	path := program(t, "echo x >>$0.runs\n"+works)
	runs := func() int {
		data, err := os.ReadFile(path + ".runs")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(data), "x")
	}
	c := NewCriu(path)
	for range 3 {
		if _, err := c.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := runs(); n != 2 { // --version and check
		t.Errorf("%d runs", n)
	}
	replace(t, path, "echo x >>$0.runs\n"+newKernel)
	for range 3 {
		if _, err := c.Ready(t.Context()); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("Ready of the next program = %v", err)
		}
	}
	if n := runs(); n != 4 {
		t.Errorf("%d runs", n)
	}
	c.last.at = time.Now().Add(-refusalAge)
	if _, err := c.Ready(t.Context()); err == nil || runs() != 6 {
		t.Errorf("an old refusal is believed: %v after %d runs", err, runs())
	}
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]int{
		"Version: 4.1.1\nGitID: v4\n": 40101, "Version: 3.16\n": 31600, "warning\nVersion: 3.17.1\n": 31701, "": 0, "4.1.1": 0, "Version: 4.1000\n": 49900,
	} {
		if _, got := parseVersion([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

func TestEnvironmentLeadsToTheProgram(t *testing.T) {
	t.Setenv("PATH", "/usr/bin")
	if got := (Program{Path: "/opt/criu/sbin/criu"}).Environment(); len(got) != 1 || got[0] != "PATH=/opt/criu/sbin:/usr/bin" {
		t.Errorf("Environment = %q", got)
	}
}

func TestWithLogErrors(t *testing.T) {
	log := filepath.Join(t.TempDir(), "dump.log")
	text := strings.Repeat("(00.000001) a line that says nothing\n", 10000) +
		"(00.050600) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n" +
		"(00.1) Error (criu/a.c:1): one\n(00.170711)      1: Error (criu/files-reg.c:1790): Can't lookup mount=27\n" +
		"(00.2) Warn  (criu/b.c:1): two\nError (criu/c.c:1): three\n(00.248289) Error (criu/cr-dump.c:2111): Dumping FAILED.\n"
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	failed := errors.New("exit status 1")
	const want = "exit status 1: CRIU says: Can't lookup mount=27; three; Dumping FAILED."
	if got := WithLogErrors(failed, log); !errors.Is(got, failed) || got.Error() != want {
		t.Errorf("error with a log = %q, want %q", got, want)
	}
	if got := WithLogErrors(failed, log+".none"); !errors.Is(got, failed) || got.Error() != "exit status 1" {
		t.Errorf("error without a log = %q", got)
	}
	if got := WithLogErrors(nil, log); got != nil {
		t.Errorf("no error with a log = %q", got)
	}
}

// CRIU finds the empty directory of crun below the runtime's own root.
func TestCriuOptions(t *testing.T) {
	for kind, want := range map[string]string{
		"runc": "tcp-close\n",
		"crun": "tcp-close\nexternal mnt[/run/crun/.empty-directory]:/state/crun/.empty-directory\n",
	} {
		if got := CriuOptions(kind, "/state/"+kind); got != want {
			t.Errorf("%s: %q, want %q", kind, got, want)
		}
	}
}
