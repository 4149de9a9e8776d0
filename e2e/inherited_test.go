package e2e

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/node"
)

// Limits, ignored signals and similar attributes of the processes that start daemon and keeper do
// not reach containers and execs. These have the same attributes on every node.
func TestInheritedLimitsDoNotReachContainers(t *testing.T) {
	f := startOn(t, func(o *node.Options) {
		o.Enter = []string{"/bin/sh", "-c", `umask 077; ulimit -S -c 0; ulimit -S -n 512; ulimit -S -s 4096; ulimit -S -l 16
			trap '' QUIT USR1 USR2 ALRM; LEAKED=1 exec "$@"`, "sh"}
	})
	want := []string{
		limitLine(t, "cpu time", unix.RLIMIT_CPU, unlimited, unlimited),
		limitLine(t, "file size", unix.RLIMIT_FSIZE, unlimited, unlimited),
		limitLine(t, "data size", unix.RLIMIT_DATA, unlimited, unlimited),
		limitLine(t, "stack size", unix.RLIMIT_STACK, 8<<20, unlimited),
		limitLine(t, "core file size", unix.RLIMIT_CORE, unlimited, unlimited),
		limitLine(t, "resident set", unix.RLIMIT_RSS, unlimited, unlimited),
		limitLine(t, "processes", unix.RLIMIT_NPROC, unlimited, unlimited),
		limitLine(t, "open files", unix.RLIMIT_NOFILE, 1024, 1<<20),
		limitLine(t, "locked memory", unix.RLIMIT_MEMLOCK, 8<<20, 8<<20),
		limitLine(t, "address space", unix.RLIMIT_AS, unlimited, unlimited),
		"Umask: 0022", "SigBlk: 0000000000000000", "SigIgn: 0000000000000000",
		"CapInh: 0000000000000000", "CapPrm: 00000000a80425fb", "CapEff: 00000000a80425fb", "CapBnd: 00000000a80425fb", "CapAmb: 0000000000000000",
		"NoNewPrivs: 0", "oom_score_adj 123", "env 0",
	}
	raises := f.execsRaiseDescriptors()
	for kind, got := range f.processFacts() {
		if kind == "exec" && raises {
			files := want[slices.IndexFunc(want, func(line string) bool { return strings.HasPrefix(line, "Max open files") })]
			hard := files[strings.LastIndexByte(files, ' '):]
			got = strings.Replace(got, "Max open files"+hard+hard+"\n", files+"\n", 1)
		}
		if got != strings.Join(want, "\n")+"\n" {
			t.Errorf("%s has\n%s\nwant\n%s", kind, got, strings.Join(want, "\n"))
		}
	}
}

// execsRaiseDescriptors reports whether the node's OCI runtime is a runc that may start an exec
// with the hard limit of descriptors as its soft limit.
//
// runc before 1.1.13 sets an exec's limits while the Go runtime of the exec's own runc starts
// (setnsProcess.start in runc's process_linux.go). With Go before 1.19.9, that Go runtime raises
// the soft limit and never lowers it again (os/rlimit.go). Which of the two happens last is a race.
func (f *fixture) execsRaiseDescriptors() bool {
	f.t.Helper()
	info, err := f.Mica(f.ctx, "info")
	f.no(err)
	if !strings.Contains(info, "/runc") {
		return false
	}
	out, err := exec.Command("runc", "--version").Output()
	f.no(err)
	var runc, built [3]int
	_, after, _ := strings.Cut(string(out), "runc version ")
	_, _ = fmt.Sscanf(after, "%d.%d.%d", &runc[0], &runc[1], &runc[2])
	_, after, _ = strings.Cut(string(out), "go: go")
	_, _ = fmt.Sscanf(after, "%d.%d.%d", &built[0], &built[1], &built[2])
	return slices.Compare(runc[:], []int{1, 1, 13}) < 0 && slices.Compare(built[:], []int{1, 19, 9}) < 0
}

// OCI runtimes start with the hard limit of descriptors as their soft limit, whatever the limits of
// daemon and keeper are: runc before 1.1.13 gives its own initial soft limit to containers and
// execs.
func TestRuntimesStartWithAllDescriptors(t *testing.T) {
	var limits string
	f := startOn(t, func(o *node.Options) {
		o.Enter = []string{"/bin/sh", "-c", `ulimit -S -n 512; exec "$@"`, "sh"}
		o.ExecByRuntime = true
		limits = recordRuntime(t, o, "$(ulimit -S -n) $(ulimit -H -n) $* ")
	})
	config := f.podConfig()
	id, err := f.Runtime.RunPodSandbox(f.ctx, config, "recorded")
	f.no(err)
	f.exec(f.start(pod{id, config}, f.containerConfig(busyboxImage, "sleep", "600")), "true")
	text, err := os.ReadFile(limits)
	f.no(err)
	var held unix.Rlimit
	f.no(unix.Getrlimit(unix.RLIMIT_NOFILE, &held))
	for line := range strings.Lines(string(text)) {
		if want := fmt.Sprintf("%d %d ", held.Max, held.Max); !strings.HasPrefix(line, want) {
			t.Errorf("the runtime ran with limits %q, want %q", line, want)
		}
	}
	for _, subcommand := range []string{" create ", " exec "} {
		if !strings.Contains(string(text), subcommand) {
			t.Errorf("no%swas run: %s", subcommand, text)
		}
	}
}

const unlimited = math.MaxUint64

// limitLine returns a line of /proc/PID/limits for limits that cannot exceed this process's hard
// limit, with which the node was started.
func limitLine(t *testing.T, name string, resource int, soft, hard uint64) string {
	t.Helper()
	var held unix.Rlimit
	if err := unix.Getrlimit(resource, &held); err != nil {
		t.Fatal(err)
	}
	text := func(v uint64) string {
		if v == unlimited {
			return "unlimited"
		}
		return strconv.FormatUint(v, 10)
	}
	hard = min(hard, held.Max)
	return "Max " + name + " " + text(min(soft, hard)) + " " + text(hard)
}

// processFacts returns the kernel's information on a container's first process and on an exec's.
func (f *fixture) processFacts() map[string]string {
	f.t.Helper()
	script := []string{"sh", "-c", `
		sed -nE 's/ +/ /g; s/^(Max (cpu|file size|data|stack|core|resident|processes|open|locked|address).*) (seconds|bytes|processes|files) ?$/\1/p' /proc/self/limits
		sed -nE 's/\t/ /; /^(Sig(Blk|Ign)|Cap|NoNewPrivs|Umask)/p' /proc/self/status
		echo oom_score_adj $(cat /proc/self/oom_score_adj); echo env $(env | grep -c LEAKED)`}
	p := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, script...)
	config.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 123}
	first := f.output(p, config)
	config = f.containerConfig(busyboxImage, "sleep", "600")
	config.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 123}
	return map[string]string{"container": first, "exec": f.exec(f.start(p, config), script...)}
}
