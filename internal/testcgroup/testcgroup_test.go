package testcgroup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// look prints a program's view: the entries below /sys/fs/cgroup, the mounts there, and the
// controllers of the unified hierarchy.
const look = `
ls /sys/fs/cgroup
echo mounts
awk '$5 ~ "^/sys/fs/cgroup" { print $5, $(NF-2) }' /proc/self/mountinfo
echo controllers
cat /sys/fs/cgroup/unified/cgroup.controllers 2>/dev/null || true
`

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v: %s", args, err, out)
	}
	return string(out)
}

func hybrid(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 || !Hybrid() {
		t.Skip("needs root and a hybrid cgroup hierarchy")
	}
}

func TestUnifiedHierarchyIsHidden(t *testing.T) {
	hybrid(t)
	outside := run(t, "sh", "-c", look)
	inside := run(t, Command("sh", "-c", look)...)
	var want []string
	for line := range strings.Lines(outside) {
		if !strings.Contains(line, "unified") {
			want = append(want, line)
		}
	}
	want = want[:slices.Index(want, "controllers\n")+1]
	got := strings.SplitAfter(strings.TrimSuffix(inside, "\n")+"\n", "\n")
	got = got[:len(got)-1]
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("inside: %q, want %q", got, want)
	}
	if after := run(t, "sh", "-c", look); after != outside {
		t.Errorf("the host's view was %q and is %q", outside, after)
	}
}

// Files created beside the hierarchies stay in the namespace; cgroups created in the hierarchies
// are the host's.
func TestOnlyHierarchiesAreShared(t *testing.T) {
	hybrid(t)
	name := fmt.Sprintf("testcgroup-%d", os.Getpid())
	dir := fmt.Sprintf("/sys/fs/cgroup/pids/%s-%d", t.Name(), os.Getpid())
	t.Cleanup(func() { _ = os.Remove(dir) })
	run(t, Command("mkdir", "/sys/fs/cgroup/"+name, dir)...)
	if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err != nil {
		t.Error(err)
	}
	found := run(t, "unshare", "--mount", "sh", "-euc", "umount /sys/fs/cgroup/unified; find /sys/fs/cgroup -xdev -name "+name)
	if found != "" {
		t.Errorf("on the host: %s", found)
	}
}

func TestCommandUnchangedWithoutHybrid(t *testing.T) {
	hybrid(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := Command(self, "-test.run", "^TestInside$", "-test.v")
	if out := run(t, args...); !strings.Contains(out, "--- PASS: TestInside") {
		t.Errorf("inside: %s", out)
	}
}

// TestInside prints its view only if TestCommandUnchangedWithoutHybrid runs it.
func TestInside(t *testing.T) {
	if Hybrid() {
		t.Skip("runs only inside the namespace")
	}
	if got := Command("true"); !slices.Equal(got, []string{"true"}) {
		t.Errorf("Command: %q", got)
	}
}

func TestExitStatusIsTheProgramsOwn(t *testing.T) {
	hybrid(t)
	args := Command("sh", "-c", "exit 7")
	err := exec.CommandContext(t.Context(), args[0], args[1:]...).Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 7 {
		t.Errorf("exit: %v", err)
	}
}
