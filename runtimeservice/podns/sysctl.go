package podns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// sysctl is one kernel parameter: its path below /proc/sys and its value.
type sysctl struct{ path, value string }

// SetInterfaceSysctls sets the sysctls of args that belong to a network interface other than
// loopback, in the pod's network namespace. Pin does not set them, since the interface is added
// later with the pod's network. If the kernel does not know a sysctl or the interface does not
// exist, it returns errdefs.ErrFailedPrecondition.
func SetInterfaceSysctls(args Args) error {
	all, err := parseSysctls(args.Sysctls, args)
	if err != nil {
		return err
	}
	var late []sysctl
	for _, s := range all {
		if s.ofInterface() {
			late = append(late, s)
		}
	}
	if len(late) == 0 {
		return nil
	}
	return Do(filepath.Join(args.Dir, Net), func() error {
		for _, s := range late {
			if err := s.set(); err != nil {
				return err
			}
		}
		return nil
	})
}

// ofInterface reports whether the sysctl exists only while its interface (not loopback) exists.
func (s sysctl) ofInterface() bool {
	parts := strings.Split(s.path, "/")
	return len(parts) == 5 && perInterface(parts) && !slices.Contains([]string{"all", "default", "lo"}, parts[3])
}

// perInterface reports whether a path is below a directory with one entry for each interface.
func perInterface(parts []string) bool {
	if len(parts) < 5 || parts[0] != "net" {
		return false
	}
	switch parts[1] {
	case "ipv4", "ipv6":
		return parts[2] == "conf" || parts[2] == "neigh"
	case "mpls":
		return parts[2] == "conf"
	}
	return false
}

func (s sysctl) set() error {
	f, err := os.OpenFile(filepath.Join("/proc/sys", s.path), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set sysctl %s: the kernel does not know it: %w", s.path, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return fmt.Errorf("set sysctl %s: %w", s.path, err)
	}
	_, err = f.WriteString(s.value)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("set sysctl %s to %q: %w: %w", s.path, s.value, err, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return fmt.Errorf("set sysctl %s to %q: %w", s.path, s.value, err)
	}
	return nil
}

// CheckSysctls returns errdefs.ErrInvalidArgument for the first name of args.Sysctls that the
// namespaces of args do not own: setting it would change the node. A pod may set net.* in its own
// network namespace, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.* in its own IPC namespace,
// and kernel.domainname in its own UTS namespace. Pin makes the same check.
func CheckSysctls(args Args) error {
	_, err := parseSysctls(args.Sysctls, args)
	return err
}

func parseSysctls(values map[string]string, args Args) ([]sysctl, error) {
	list := make([]sysctl, 0, len(values))
	for name, value := range values {
		path, err := sysctlPath(name)
		if err != nil {
			return nil, err
		}
		kind, own := owner(path, args)
		if kind == "" {
			return nil, fmt.Errorf("sysctl %s belongs to no namespace: %w", name, errdefs.ErrInvalidArgument)
		}
		if !own {
			return nil, fmt.Errorf("sysctl %s needs a %s namespace of the pod's own: %w", name, kind, errdefs.ErrInvalidArgument)
		}
		// A value from a YAML block scalar ends in a newline.
		list = append(list, sysctl{path, strings.TrimSpace(value)})
	}
	slices.SortFunc(list, func(a, b sysctl) int { return strings.Compare(a.path, b.path) })
	return list, nil
}

// sysctlPath converts a name to a path below /proc/sys as sysctl(8) does. The first separator
// decides whether '.' or '/' separates elements. The other one is then part of a name (an interface
// called eth0.100). With dots as separators, an interface's name may contain dots too: exactly one
// element follows it, so that its end is known.
func sysctlPath(name string) (string, error) {
	path := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		path = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, name)
	}
	if !filepath.IsLocal(path) || filepath.Clean(path) != path || strings.ContainsRune(path, 0) {
		return "", fmt.Errorf("sysctl name %q: %w", name, errdefs.ErrInvalidArgument)
	}
	if parts := strings.Split(path, "/"); perInterface(parts) {
		last := len(parts) - 1
		path = strings.Join([]string{parts[0], parts[1], parts[2], strings.Join(parts[3:last], "."), parts[last]}, "/")
	}
	return path, nil
}

// owner returns the kind of namespace that a sysctl belongs to, and whether the pod of args has its
// own.
func owner(path string, args Args) (kind string, own bool) {
	switch {
	case strings.HasPrefix(path, "net/"):
		return Net, args.Net
	case strings.HasPrefix(path, "fs/mqueue/"), path == "kernel/sem",
		strings.HasPrefix(path, "kernel/shm"), strings.HasPrefix(path, "kernel/msg"):
		return IPC, args.IPC
	case path == "kernel/domainname":
		return UTS, args.UTS
	}
	return "", false
}
