package oci

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/osthread"
)

// buildHelper builds mica-init.
func buildHelper(t testing.TB) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "mica-init")
	cmd := exec.Command("cc", "-Os", "-static", "-nostdlib", "-o", program, "../../cmd/mica-init/init.c")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build mica-init: %v: %s", err, out)
	}
	return program
}

// directly returns the same container with a runtime that can only start processes directly.
func (c container) directly(t testing.TB, helper string) container {
	t.Helper()
	options := c.Runtime.options
	options.Helper, options.WorkDir = helper, t.TempDir()
	c.Runtime = New(Handler{Path: "/bin/false", Root: c.Handler().Root, Type: c.Handler().Type}, options)
	return c
}

// state reads the state that the OCI runtime has of the container.
func (c container) pid(t testing.TB) int {
	t.Helper()
	s, err := c.State(t.Context(), c.id)
	if err != nil {
		t.Fatal(err)
	}
	return s.Pid
}

// placeOf returns where a process in the container is started. The directories of cgroups are those
// of the container's first process.
func (c container) placeOf(t testing.TB, s *specs.Spec) *Direct {
	t.Helper()
	profile, err := NewProfile(s)
	if err != nil || !profile.direct {
		t.Fatalf("profile: %+v, %v", profile, err)
	}
	pid := c.pid(t)
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := &Direct{Profile: profile, Init: os.NewFile(uintptr(fd), "init")}
	t.Cleanup(func() { _ = d.Init.Close() })
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		field := strings.SplitN(strings.TrimSpace(line), ":", 3)
		name := strings.TrimPrefix(field[1], "name=")
		unified := exists("/sys/fs/cgroup/cgroup.controllers")
		switch {
		case field[0] != "0" && unified: // hidden from this mount namespace
		case field[0] != "0":
			d.V1 = append(d.V1, filepath.Join("/sys/fs/cgroup", name, field[2]))
		case unified:
			d.Unified = filepath.Join("/sys/fs/cgroup", field[2])
		case exists("/sys/fs/cgroup/unified"):
			d.Unified = filepath.Join("/sys/fs/cgroup/unified", field[2])
		}
	}
	return d
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// seccompProfile refuses one system call and allows the others.
func seccompProfile() *specs.LinuxSeccomp {
	errno := uint(unix.ENOTTY)
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchAARCH64, specs.ArchARM},
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: &errno}},
	}
}

// directCase is a container and a process.
type directCase struct {
	name      string
	container func(*specs.Spec)
	process   func(*specs.Process)
}

func directCases() []directCase {
	some := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_NET_BIND_SERVICE"}
	all := specs.LinuxCapabilities{Bounding: some, Effective: some, Permitted: some}
	none := func(*specs.Spec) {}
	return []directCase{
		{"root", none, func(p *specs.Process) { p.Capabilities = &all }},
		{"without capabilities", none, func(p *specs.Process) { p.Capabilities = &specs.LinuxCapabilities{} }},
		{"user", none, func(p *specs.Process) {
			p.Capabilities = &all
			p.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 1001, 70000}}
		}},
		{"ambient", none, func(p *specs.Process) {
			caps := all
			caps.Inheritable, caps.Ambient = some, some[3:]
			p.Capabilities, p.User.UID = &caps, 1000
		}},
		{"limits", none, func(p *specs.Process) {
			p.Capabilities, p.NoNewPrivileges = &all, true
			score := 321
			p.OOMScoreAdj = &score
			p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 77}, {Type: "RLIMIT_CORE"}, {Type: "RLIMIT_NPROC", Soft: 500, Hard: 600}}
			p.Cwd = "/tmp"
			p.Env = append(p.Env, "EMPTY=", "WITH SPACE=a b", "LAST=1=2")
		}},
		{"seccomp", func(s *specs.Spec) { s.Linux.Seccomp = seccompProfile() }, func(p *specs.Process) { p.Capabilities = &all }},
		{"seccomp and no new privileges", func(s *specs.Spec) { s.Linux.Seccomp = seccompProfile() }, func(p *specs.Process) {
			p.Capabilities, p.NoNewPrivileges, p.User.UID = &all, true, 1000
		}},
		{"cgroup namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		}, func(p *specs.Process) { p.Capabilities = &all }},
		{"host PID and network", func(s *specs.Spec) {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.IPCNamespace}}
			s.Hostname = ""
		}, func(p *specs.Process) { p.Capabilities = &all }},
		{"user namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			s.Linux.GIDMappings = []specs.LinuxIDMapping{{HostID: 200000, Size: 65536}}
			s.Linux.Seccomp = seccompProfile()
		}, func(p *specs.Process) {
			p.Capabilities = &all
			p.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5}}
		}},
	}
}

// views are commands that show what a process is like.
func views(id string) map[string][]string {
	files := []string{
		"status", "limits", "mountinfo", "cgroup", "environ", "cmdline", "attr/current", "uid_map", "gid_map", "setgroups",
		"oom_score_adj", "loginuid", "timerslack_ns", "personality", "coredump_filter", "stat", "comm",
	}
	cat := []string{"cat"}
	for _, name := range files {
		cat = append(cat, "/proc/self/"+name)
	}
	return map[string][]string{
		"files":       cat,
		"keyring":     {"busybox", "grep", "_ses." + id, "/proc/keys"},
		"descriptors": {"busybox", "ls", "-ln", "/proc/self/fd"},
		"links":       {"busybox", "ls", "-l", "/proc/self/ns", "/proc/self/cwd", "/proc/self/root", "/proc/self/exe"},
		"streams":     {"busybox", "stat", "-L", "-c", "%n %u:%g %a %F", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2"},
		"shell":       {"sh", "-c", "umask; id; pwd; ulimit -a; trap; mkdir /tmp/new && busybox rmdir /tmp/new; busybox hostname; busybox tty; echo $0 $*"},
		"not found":   {"no-such-program"},
		"path":        {"/bin/busybox", "true"},
	}
}

// normal replaces what differs between any two processes.
func normal(text string) string {
	for _, r := range []struct{ pattern, by string }{
		{`(?m)^(Pid|Tgid|Ngid|NSpid|NStgid|NSpgid|NSsid|PPid):.*$`, "$1: #"},
		{`(?m)^(Vm|Rss|Hugetlb)\w+:.*$`, "$1: #"},
		{`(?m)^(\w*ctxt_switches|Cpus_allowed\w*|Mems_allowed\w*|SigQ|FDSize|x86_\w+):.*$`, "$1: #"},
		{`(pipe|socket):\[\d+\]`, "$1:[#]"},
		{`/proc/\d+`, "/proc/#"},
		{`(?m)(\w{3} +\d+ \d\d:\d\d|\w{3} +\d+ +\d{4}) `, "time "},
		{`(?m)^[0-9a-f]{8} (I\S+) +\d+ `, "$1 # "}, // the uses of a key
	} {
		text = regexp.MustCompile(r.pattern).ReplaceAllString(text, r.by)
	}
	return text
}

// shortStat shortens /proc/self/stat: it keeps whether the process leads its session and group, the
// terminal, the priority and the policy.
func shortStat(text string) string {
	return regexp.MustCompile(`(?m)^(\d+) \((\w+)\) (.*)$`).ReplaceAllStringFunc(text, func(line string) string {
		f := strings.Fields(line)
		return fmt.Sprint("stat ", f[1], f[0] == f[4], f[0] == f[5], f[6], f[7], f[17:20], f[39:41])
	})
}

type seen struct {
	code     int
	out, err string
	failure  bool
}

func (c container) look(t *testing.T, d *Direct, p specs.Process, command []string) seen {
	t.Helper()
	p.Args = command
	var stdout, stderr bytes.Buffer
	code, err := c.do(t, ExecArgs{Process: &p, Stdout: &stdout, Stderr: &stderr, Stdin: strings.NewReader(""), Direct: d})
	out := normal(shortStat(stdout.String()))
	if d == nil {
		out = withoutInherited(t, out)
	}
	return seen{code, out, normal(stderr.String()), err != nil}
}

var ignoredSignals = regexp.MustCompile(`(?m)^SigIgn:\t([0-9a-f]+)$`)

// withoutInherited clears the signals that this test ignores since its start. The OCI runtime's exec
// passes them on, and a direct start does not. GNU make, for example, starts programs by
// posix_spawn(3), after which they ignore signals 32 and 33.
func withoutInherited(t *testing.T, status string) string {
	t.Helper()
	mask := func(text string) uint64 {
		m, err := strconv.ParseUint(text, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	inherited := mask(ignoredSignals.FindStringSubmatch(string(own))[1])
	return ignoredSignals.ReplaceAllStringFunc(status, func(line string) string {
		ignored := mask(ignoredSignals.FindStringSubmatch(line)[1])
		return fmt.Sprintf("SigIgn:\t%016x", ignored&^inherited)
	})
}

// A process that is started directly is like one that the OCI runtime starts, in everything that it
// can see of itself.
func TestExecDirectlyIsLikeTheRuntime(t *testing.T) {
	umask := unix.Umask(defaultUmask) // the daemon's; runc's execs inherit it
	t.Cleanup(func() { unix.Umask(umask) })
	helper := buildHelper(t)
	for _, tc := range directCases() {
		t.Run(tc.name, func(t *testing.T) {
			var spec specs.Spec
			c := newContainerOf(t, func(s *specs.Spec) {
				tc.container(s)
				spec = *s
			})
			direct := c.directly(t, helper)
			place := c.placeOf(t, &spec)
			place.Seccomp = func() (*specs.LinuxSeccomp, error) { return spec.Linux.Seccomp, nil }
			c.shareFilter(t, direct, place, helper)
			p := specs.Process{Cwd: "/", Env: []string{"PATH=/sbin:/bin", "HOME=/root"}}
			tc.process(&p)
			for name, command := range views(c.id) {
				want, got := c.look(t, nil, p, command), direct.look(t, place, p, command)
				if c.Handler().Type == "crun" {
					want = likeRunc(want)
				}
				if want != got {
					t.Errorf("%s:\n%s", name, difference(want, got))
				}
			}
		})
	}
}

// likeRunc replaces the differences between crun's and runc's exec: crun's processes do not lead
// their sessions.
func likeRunc(s seen) seen {
	s.out = strings.Replace(s.out, "false false", "true true", 1)
	return s
}

// shareFilter lets direct use the filter that c's OCI runtime makes of the profile.
func (c container) shareFilter(t *testing.T, direct container, d *Direct, helper string) {
	t.Helper()
	if d.Profile.seccomp == "" {
		return
	}
	c.Runtime.options.Helper = helper
	_, err := c.filters.of(c.Runtime, d)
	var unread unreadFilter
	if !errors.As(err, &unread) {
		t.Fatalf("unknown filter: %v", err)
	}
	<-unread.read
	if _, err := c.filters.of(c.Runtime, d); err != nil {
		t.Fatal(err)
	}
	direct.filters.known = c.filters.known
}

func difference(want, got seen) string {
	w, g := strings.Split(want.out+want.err, "\n"), strings.Split(got.out+got.err, "\n")
	var out strings.Builder
	fmt.Fprintf(&out, "exit %d, error %v; directly: exit %d, error %v\n", want.code, want.failure, got.code, got.failure)
	for i := range max(len(w), len(g)) {
		var a, b string
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if a != b {
			fmt.Fprintf(&out, "  runtime:  %s\n  directly: %s\n", strconv.Quote(a), strconv.Quote(b))
		}
	}
	return out.String()
}

// A working directory that is a descriptor of the starting process is not entered, also where the
// container sees this machine's processes.
func TestExecDirectlyStaysInside(t *testing.T) {
	helper := buildHelper(t)
	var spec specs.Spec
	c := newContainerOf(t, func(s *specs.Spec) {
		s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}}
		s.Hostname = ""
		spec = *s
	})
	direct, place := c.directly(t, helper), c.placeOf(t, &spec)
	for fd := range 20 {
		p := &specs.Process{
			Args: []string{"true"}, Env: []string{"PATH=/bin", "HOME=/"}, Capabilities: &specs.LinuxCapabilities{},
			Cwd: fmt.Sprintf("/proc/self/fd/%d", fd),
		}
		if code, err := direct.do(t, ExecArgs{Process: p, Direct: place}); err == nil {
			t.Errorf("working directory %s: exit code %d", p.Cwd, code)
		}
	}
	p := &specs.Process{Args: []string{"true"}, Env: []string{"PATH=/bin", "HOME=/"}, Capabilities: &specs.LinuxCapabilities{}, Cwd: "/proc"}
	if code, err := direct.do(t, ExecArgs{Process: p, Direct: place}); err != nil || code != 0 {
		t.Errorf("working directory /proc: %d, %v", code, err)
	}
}

// If a container's first process has moved to a namespace that the specification does not name, the
// OCI runtime decides whether execs follow it.
func TestExecDirectlyKnowsTheNamespaces(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	cmd := exec.Command("sleep", "100000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := &Direct{Init: os.NewFile(uintptr(fd), "init")}
	defer d.Init.Close()
	for _, tc := range []struct {
		types []specs.LinuxNamespaceType
		want  uint64
		err   error
	}{
		{[]specs.LinuxNamespaceType{specs.UTSNamespace, specs.IPCNamespace}, unix.CLONE_NEWIPC | unix.CLONE_NEWUTS, nil},
		{[]specs.LinuxNamespaceType{specs.UTSNamespace, specs.MountNamespace}, 0, errIndirect},
	} {
		linux := &specs.Linux{}
		for _, kind := range tc.types {
			linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: kind})
		}
		if d.Profile, err = NewProfile(&specs.Spec{Linux: linux}); err != nil {
			t.Fatal(err)
		}
		if got, err := d.foreignNamespaces(); got != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("container with %v: namespaces %#x, %v, want %#x, %v", tc.types, got, err, tc.want, tc.err)
		}
	}
}

// A process whose name cannot be read has perhaps run its program.
func TestExecDirectlyRunsNothingTwice(t *testing.T) {
	for comm, want := range map[string]bool{executingComm: false, "exec": true} {
		err := osthread.Run(func() error {
			name := filepath.Join("/proc/self/task", strconv.Itoa(unix.Gettid()), "comm")
			if err := os.WriteFile(name, []byte(comm), 0); err != nil {
				return err
			}
			if got := (&conversation{pid: unix.Gettid()}).executed(); got != want {
				t.Errorf("process named %q: executed is %v", comm, got)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if none := (&conversation{pid: 1 << 30}); !none.executed() { // above the kernel's maximum
		t.Error("process without a name was not executed")
	}
}
