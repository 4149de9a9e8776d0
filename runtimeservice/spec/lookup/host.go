package lookup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/runtimeservice/spec"
)

// oomScoreAdjFloor is the lowest oom_score_adj that the kernel accepts.
const oomScoreAdjFloor = -1000

// DetectHost reads the properties of this node and process. It does not set AppArmorDefault, which
// is the result of [LoadAppArmor].
func DetectHost() (spec.Host, error) {
	h := spec.Host{
		CgroupV2:          cgroups.IsCgroup2UnifiedMode(),
		Seccomp:           hasSeccomp(),
		AppArmor:          hasAppArmor(),
		SELinux:           selinux.GetEnabled(),
		RecursiveReadOnly: hasMountSetattr(),
		LacksX32:          lacksX32(),
	}
	h.HugetlbCgroup, h.SwapAccounting = hugetlbCgroup(h.CgroupV2), swapAccounting(h.CgroupV2)
	var err error
	if h.Capabilities, err = heldCapabilities(); err != nil {
		return spec.Host{}, fmt.Errorf("read capabilities: %w", err)
	}
	if h.Hostname, err = os.Hostname(); err != nil {
		return spec.Host{}, fmt.Errorf("read hostname: %w", err)
	}
	h.RaiseRlimits = slices.Contains(h.Capabilities, "CAP_SYS_RESOURCE") && initialUserNamespace()
	if h.OOMScoreAdjMin, err = oomScoreAdjMin(h.RaiseRlimits); err != nil {
		return spec.Host{}, fmt.Errorf("read oom_score_adj: %w", err)
	}
	if h.Rlimits, err = heldRlimits(); err != nil {
		return spec.Host{}, fmt.Errorf("read resource limits: %w", err)
	}
	if h.Devices, err = HostDevices(); err != nil {
		return spec.Host{}, fmt.Errorf("list devices: %w", err)
	}
	return h, nil
}

// heldCapabilities returns the capabilities in both the bounding and the permitted set. Only these
// can be given to a container.
func heldCapabilities() ([]string, error) {
	caps, err := capability.NewPid2(0)
	if err != nil {
		return nil, err
	}
	if err := caps.Load(); err != nil {
		return nil, err
	}
	var held []string
	for _, c := range capability.ListKnown() {
		if caps.Get(capability.BOUNDING, c) && caps.Get(capability.PERMITTED, c) {
			held = append(held, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	return held, nil
}

// hasSeccomp requests filter mode without a filter. A kernel with seccomp rejects the pointer, one
// without it the operation (seccomp(2)).
func hasSeccomp() bool {
	return errors.Is(unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, 0, 0, 0), unix.EFAULT)
}

func hasAppArmor() bool {
	text, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(text), "Y")
}

// hasMountSetattr checks for mount_setattr(2), Linux 5.12.
func hasMountSetattr() bool {
	return !errors.Is(unix.MountSetattr(-1, "", 0, &unix.MountAttr{}), unix.ENOSYS)
}

func hugetlbCgroup(v2 bool) bool {
	if !v2 {
		mount, err := cgroups.FindCgroupMountpoint("", "hugetlb")
		return err == nil && mount != ""
	}
	text, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	return err == nil && slices.Contains(strings.Fields(string(text)), "hugetlb")
}

// swapAccounting checks for the file that limits swap. On v2 the root cgroup has no such file, so
// the cgroups below are checked.
func swapAccounting(v2 bool) bool {
	if !v2 {
		mount, err := cgroups.FindCgroupMountpoint("", "memory")
		if err != nil {
			return false
		}
		_, err = os.Stat(filepath.Join(mount, "memory.memsw.limit_in_bytes"))
		return err == nil
	}
	found, err := filepath.Glob("/sys/fs/cgroup/*/memory.swap.max")
	return err == nil && len(found) > 0
}

// initialUserNamespace reports whether all user IDs are mapped to themselves.
func initialUserNamespace() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	fields := strings.Fields(string(text))
	return err == nil && len(fields) == 3 && fields[0] == "0" && fields[1] == "0" && fields[2] == "4294967295"
}

// oomScoreAdjMin returns the lowest value that a child can get: any with CAP_SYS_RESOURCE,
// otherwise this process's own. (The kernel may allow a lower value, down to one that a privileged
// process has set before, but it does not expose that value.)
func oomScoreAdjMin(privileged bool) (int, error) {
	if privileged {
		return oomScoreAdjFloor, nil
	}
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// heldRlimits returns the limits of this process.
func heldRlimits() ([]specs.POSIXRlimit, error) {
	var out []specs.POSIXRlimit
	for _, l := range []struct {
		name     string
		resource int
	}{
		{"RLIMIT_AS", unix.RLIMIT_AS},
		{"RLIMIT_CORE", unix.RLIMIT_CORE},
		{"RLIMIT_CPU", unix.RLIMIT_CPU},
		{"RLIMIT_DATA", unix.RLIMIT_DATA},
		{"RLIMIT_FSIZE", unix.RLIMIT_FSIZE},
		{"RLIMIT_LOCKS", unix.RLIMIT_LOCKS},
		{"RLIMIT_MEMLOCK", unix.RLIMIT_MEMLOCK},
		{"RLIMIT_MSGQUEUE", unix.RLIMIT_MSGQUEUE},
		{"RLIMIT_NICE", unix.RLIMIT_NICE},
		{"RLIMIT_NOFILE", unix.RLIMIT_NOFILE},
		{"RLIMIT_NPROC", unix.RLIMIT_NPROC},
		{"RLIMIT_RSS", unix.RLIMIT_RSS},
		{"RLIMIT_RTPRIO", unix.RLIMIT_RTPRIO},
		{"RLIMIT_RTTIME", unix.RLIMIT_RTTIME},
		{"RLIMIT_SIGPENDING", unix.RLIMIT_SIGPENDING},
		{"RLIMIT_STACK", unix.RLIMIT_STACK},
	} {
		var r unix.Rlimit
		if err := unix.Getrlimit(l.resource, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", l.name, err)
		}
		out = append(out, specs.POSIXRlimit{Type: l.name, Soft: r.Cur, Hard: r.Max})
	}
	return out, nil
}
