package oci

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// order is the byte order of Mica's architectures.
var order = binary.LittleEndian

// Profile is what a container's specification says about every process in the container.
type Profile struct {
	direct     bool   // processes can be started without the OCI runtime
	seccomp    string // hash of the seccomp profile, "" for none
	namespaces uint64 // CLONE_NEW… that the container may have for itself
}

// NewProfile returns the profile of a specification, which it neither modifies nor keeps.
//
// A process needs the OCI runtime if its container uses something that mica-init exec does not do:
// AppArmor and SELinux, personalities, schedulers, seccomp agents, crun's annotations.
func NewProfile(s *specs.Spec) (Profile, error) {
	if s.Linux == nil || s.Linux.Personality != nil || s.Linux.IntelRdt != nil || len(s.Linux.TimeOffsets) > 0 {
		return Profile{}, nil
	}
	for key := range s.Annotations {
		if strings.HasPrefix(key, "run.oci.") {
			return Profile{}, nil
		}
	}
	p := Profile{direct: true}
	for _, ns := range s.Linux.Namespaces {
		p.namespaces |= namespaceKinds()[ns.Type].flag
	}
	seccomp := s.Linux.Seccomp
	if seccomp == nil {
		return p, nil
	}
	if seccomp.ListenerPath != "" || seccomp.DefaultAction == specs.ActNotify {
		return Profile{}, nil
	}
	for _, rule := range seccomp.Syscalls {
		if rule.Action == specs.ActNotify {
			return Profile{}, nil
		}
	}
	text, err := json.Marshal(seccomp)
	if err != nil {
		return Profile{}, fmt.Errorf("encode seccomp profile: %w", err)
	}
	sum := sha256.Sum256(text)
	p.seccomp = string(sum[:])
	return p, nil
}

// header is struct request of cmd/mica-init/exec.c.
type header struct {
	size, flags, namespaces, tasks, owned                         uint64
	ownerGID                                                      int64
	uid, gid, groups, groupCount                                  uint64
	bounding, effective, permitted, inheritable, ambient          uint64
	lastCap, umask, limits, limitCount                            uint64
	filter, filterLen, filterFlags, score, scoreLen, cwd, keyring uint64
	argv, envp, paths                                             uint64
}

// flags of a header
const (
	intoCgroup = 1 << iota
	noNewPrivs
	setUmask
)

// defaultUmask is that of every process of an OCI runtime.
const defaultUmask = 0o022

// rlimits are the kernel's numbers of resource limits.
var rlimits = sync.OnceValue(func() map[string]uint64 {
	return map[string]uint64{
		"RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4, "RLIMIT_RSS": 5,
		"RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9, "RLIMIT_LOCKS": 10,
		"RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13, "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
	}
})

// request returns the helper's request. The error is errIndirect if the process needs the OCI
// runtime.
func (r *Runtime) request(a ExecArgs, s *stdio) ([]byte, error) {
	p, d := a.Process, a.Direct
	if !d.Profile.direct || !plain(p) {
		return nil, errIndirect
	}
	paths, err := candidates(p)
	if err != nil {
		return nil, err
	}
	filter, err := r.filters.of(r, d)
	if err != nil {
		return nil, err
	}
	h := header{
		tasks: uint64(len(d.V1)), owned: s.owned(), ownerGID: -1, uid: uint64(p.User.UID), gid: uint64(p.User.GID),
		flags: setUmask, umask: defaultUmask, filterFlags: filter.flags,
	}
	keyring := ""
	if r.handler.Type == "crun" {
		h.ownerGID = int64(p.User.GID)
	} else {
		keyring = "_ses." + a.ID
	}
	if d.Unified != "" {
		h.flags |= intoCgroup
	}
	if p.NoNewPrivileges {
		h.flags |= noNewPrivs
	}
	if h.namespaces, err = d.foreignNamespaces(); err != nil {
		return nil, err
	}
	if err := h.setCapabilities(p.Capabilities); err != nil {
		return nil, err
	}
	return h.encode(a, paths, filter.program, keyring)
}

// plain reports whether the helper can do everything that the process asks for.
func plain(p *specs.Process) bool {
	return !p.Terminal && p.User.Umask == nil && p.User.Username == "" && p.Capabilities != nil &&
		p.ApparmorProfile == "" && p.SelinuxLabel == "" && p.Scheduler == nil && p.IOPriority == nil && p.ExecCPUAffinity == nil &&
		path.IsAbs(p.Cwd) && !strings.ContainsRune(p.Cwd, 0)
}

// candidates returns the paths of the program in the order in which execvp(3) tries them. The
// runtimes treat some environments in ways of their own, which are left to them: without HOME or
// PATH, with a variable twice, with relative directories in PATH.
func candidates(p *specs.Process) ([]string, error) {
	seen := map[string]bool{}
	search := ""
	for _, entry := range p.Env {
		name, value, ok := strings.Cut(entry, "=")
		if !ok || name == "" || seen[name] || strings.ContainsRune(entry, 0) {
			return nil, errIndirect
		}
		seen[name] = true
		if name == "PATH" {
			search = value
		}
	}
	if !seen["HOME"] || search == "" || len(p.Args) == 0 || p.Args[0] == "" {
		return nil, errIndirect
	}
	if strings.Contains(p.Args[0], "/") {
		return p.Args[:1], nil
	}
	var paths []string
	for _, dir := range strings.Split(search, ":") {
		if !path.IsAbs(dir) {
			return nil, errIndirect
		}
		paths = append(paths, path.Join(dir, p.Args[0]))
	}
	return paths, nil
}

// namespaceKind is a kind of namespace that a container may have for itself.
type namespaceKind struct {
	flag uint64
	file string // below /proc/PID/ns
}

func namespaceKinds() map[specs.LinuxNamespaceType]namespaceKind {
	return map[specs.LinuxNamespaceType]namespaceKind{
		specs.UserNamespace:    {unix.CLONE_NEWUSER, "user"},
		specs.MountNamespace:   {unix.CLONE_NEWNS, "mnt"},
		specs.PIDNamespace:     {unix.CLONE_NEWPID, "pid"},
		specs.NetworkNamespace: {unix.CLONE_NEWNET, "net"},
		specs.IPCNamespace:     {unix.CLONE_NEWIPC, "ipc"},
		specs.UTSNamespace:     {unix.CLONE_NEWUTS, "uts"},
		specs.CgroupNamespace:  {unix.CLONE_NEWCGROUP, "cgroup"},
	}
}

// foreignNamespaces returns the namespaces of the container's first process that are not this
// process's. The PID may have another owner if the process has ended; setns(2) by the pidfd then
// fails.
//
// The error is errIndirect if that process has left the container's namespaces for one of a kind
// that the specification does not name, such as a user namespace. The runtimes differ then: runc
// does not follow it, crun does.
func (d *Direct) foreignNamespaces() (uint64, error) {
	pid, err := pidOf(d.Init)
	if err != nil {
		return 0, err
	}
	var flags uint64
	for _, kind := range namespaceKinds() {
		same, err := sameNamespace(pid, kind.file)
		if err != nil {
			return 0, err
		}
		if !same {
			flags |= kind.flag
		}
	}
	same, err := sameNamespace(pid, "time")
	if err == nil && !same || flags&^d.Profile.namespaces != 0 {
		return 0, errIndirect
	}
	return flags, nil
}

func sameNamespace(pid int, name string) (bool, error) {
	var own, other unix.Stat_t
	if err := unix.Stat("/proc/self/ns/"+name, &own); err != nil {
		return false, os.NewSyscallError("stat", err)
	}
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", pid, name), &other); err != nil {
		return false, os.NewSyscallError("stat", err)
	}
	return own.Dev == other.Dev && own.Ino == other.Ino, nil
}

// pidOf returns the process ID of a pidfd (proc_pid_fdinfo(5)).
func pidOf(pidfd *os.File) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd.Fd()))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), "\nPid:")
	line, _, _ := strings.Cut(rest, "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("process of pidfd has ended: %w", errIndirect)
	}
	return pid, nil
}

// lastCap is the highest capability of the kernel.
var lastCap = sync.OnceValues(func() (uint64, error) {
	text, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 6)
})

func (h *header) setCapabilities(c *specs.LinuxCapabilities) error {
	var err error
	if h.lastCap, err = lastCap(); err != nil {
		return err
	}
	for _, set := range []struct {
		to    *uint64
		names []string
	}{
		{&h.bounding, c.Bounding},
		{&h.effective, c.Effective},
		{&h.permitted, c.Permitted},
		{&h.inheritable, c.Inheritable},
		{&h.ambient, c.Ambient},
	} {
		for _, name := range set.names {
			number, ok := capabilities()[name]
			if !ok || number > h.lastCap {
				return errIndirect // runtimes ignore it with a warning
			}
			*set.to |= 1 << number
		}
	}
	return nil
}

// capabilities are the kernel's numbers of capabilities.
var capabilities = sync.OnceValue(func() map[string]uint64 {
	names := []string{
		"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
		"NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
		"SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
		"AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
		"PERFMON", "BPF", "CHECKPOINT_RESTORE",
	}
	numbers := map[string]uint64{}
	for number, name := range names {
		numbers["CAP_"+name] = uint64(number)
	}
	return numbers
})

// encode appends everything that the header refers to, and returns both.
func (h *header) encode(a ExecArgs, paths []string, filter []byte, keyring string) ([]byte, error) {
	p := a.Process
	out := make([]byte, unsafe.Sizeof(*h), 16<<10)
	place := func(data []byte) uint64 { // aligned to 8 bytes
		out = append(out, make([]byte, -len(out)&7)...)
		at := uint64(len(out))
		out = append(out, data...)
		return at
	}
	text := func(s string) uint64 { return place(append([]byte(s), 0)) }
	list := func(all []string) uint64 {
		var offsets []byte
		for _, s := range all {
			offsets = order.AppendUint64(offsets, text(s))
		}
		return place(order.AppendUint64(offsets, 0))
	}
	var groups, limits []byte
	for _, id := range p.User.AdditionalGids {
		groups = order.AppendUint32(groups, id)
	}
	for _, l := range p.Rlimits {
		number, ok := rlimits()[l.Type]
		if !ok {
			return nil, errIndirect
		}
		for _, v := range []uint64{number, l.Soft, l.Hard} {
			limits = order.AppendUint64(limits, v)
		}
	}
	h.groups, h.groupCount = place(groups), uint64(len(p.User.AdditionalGids))
	h.limits, h.limitCount = place(limits), uint64(len(p.Rlimits))
	h.filter, h.filterLen = place(filter), uint64(len(filter)/8)
	if p.OOMScoreAdj != nil {
		score := strconv.Itoa(*p.OOMScoreAdj)
		h.score, h.scoreLen = text(score), uint64(len(score))
	}
	if keyring != "" {
		h.keyring = text(keyring)
	}
	h.cwd, h.argv, h.envp, h.paths = text(p.Cwd), list(p.Args), list(p.Env), list(paths)
	h.size = uint64(len(out))
	copy(out, unsafe.Slice((*byte)(unsafe.Pointer(h)), unsafe.Sizeof(*h)))
	return out, nil
}
