package lookup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/mounts"
	"github.com/micarun/mica/runtimeservice/spec"
)

// maxSeccompProfile bounds the file of a Localhost profile, in bytes.
const maxSeccompProfile = 4 << 20

// PrepareMounts resolves the sources of CRI mounts. It follows symbolic links, makes a missing host
// path as a directory of mode 0755, and checks the propagation against the mount that contains the
// source. It returns one source for each mount; for an image mount it is "", to be filled in by the
// caller. It does not touch targets in the root file system: the OCI runtime makes and opens them
// without leaving the root. A host path that cannot be resolved, or propagation that the node
// cannot provide, is ErrFailedPrecondition.
func PrepareMounts(mounts []*runtimeapi.Mount) ([]string, error) {
	sources := make([]string, len(mounts))
	for i, m := range mounts {
		if m.GetImage() != nil {
			continue
		}
		source, err := prepareSource(m.GetHostPath())
		if err != nil {
			return nil, fmt.Errorf("prepare mount %s: %w", m.GetContainerPath(), err)
		}
		sources[i] = source
	}
	if err := checkPropagations(mounts, sources); err != nil {
		return nil, err
	}
	return sources, nil
}

// checkPropagations reads the node's mounts once, and only if the request has a mount with
// propagation.
func checkPropagations(mounts []*runtimeapi.Mount, sources []string) error {
	var all []*mountinfo.Info
	for i, m := range mounts {
		if m.GetImage() != nil || m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
			continue
		}
		if all == nil {
			var err error
			if all, err = mountinfo.GetMounts(nil); err != nil {
				return fmt.Errorf("prepare mount %s: read mounts: %w", m.GetContainerPath(), err)
			}
		}
		if err := checkPropagation(all, sources[i], m.GetPropagation()); err != nil {
			return fmt.Errorf("prepare mount %s: %w", m.GetContainerPath(), err)
		}
	}
	return nil
}

func prepareSource(host string) (string, error) {
	if !filepath.IsAbs(host) {
		return "", invalid("host path %q is not absolute", host)
	}
	if _, err := os.Lstat(host); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(host, 0o755); err != nil {
			return "", fmt.Errorf("make host path: %w", err)
		}
	}
	source, err := filepath.EvalSymlinks(host)
	if err != nil {
		return "", fmt.Errorf("resolve host path %s: %w", host, absent(err))
	}
	return source, nil
}

// checkPropagation returns an error if the mount that contains source (one of all) cannot provide
// the propagation. Mounts propagate only through a shared peer group (mount_namespaces(7)).
func checkPropagation(all []*mountinfo.Info, source string, p runtimeapi.MountPropagation) error {
	under := mounts.Containing(all, source)
	if under == nil {
		return unsupported("no mount found below %s", source)
	}
	shared := strings.Contains(under.Optional, "shared:")
	slave := strings.Contains(under.Optional, "master:")
	if p == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL && !shared {
		return unsupported("bidirectional propagation: %s lies on %s, which is not shared", source, under.Mountpoint)
	}
	if !shared && !slave {
		return unsupported("propagation from the host: %s lies on %s, which is private", source, under.Mountpoint)
	}
	return nil
}

// ResolveDevices returns the device nodes for CRI device requests. A directory means all device
// nodes below it. If two nodes have the same path, the later one is used.
func ResolveDevices(devices []*runtimeapi.Device) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	var nodes []specs.LinuxDevice
	var rules []specs.LinuxDeviceCgroup
	last := map[string]int{} // path → index of its node
	for _, d := range devices {
		found, err := resolveDevice(d)
		if err != nil {
			return nil, nil, fmt.Errorf("resolve device %s: %w", d.GetHostPath(), absent(err))
		}
		access := d.GetPermissions()
		if access == "" {
			access = "rwm"
		}
		for _, node := range found {
			last[node.Path] = len(nodes)
			nodes = append(nodes, node)
			rules = append(rules, specs.LinuxDeviceCgroup{
				Allow: true, Type: node.Type, Major: &node.Major, Minor: &node.Minor, Access: access,
			})
		}
	}
	kept := nodes[:0]
	for i, node := range nodes {
		if last[node.Path] == i {
			kept = append(kept, node)
		}
	}
	return kept, rules, nil
}

func resolveDevice(d *runtimeapi.Device) ([]specs.LinuxDevice, error) {
	host, err := filepath.EvalSymlinks(d.GetHostPath())
	if err != nil {
		return nil, err
	}
	target := d.GetContainerPath()
	if target == "" {
		target = d.GetHostPath()
	}
	info, err := os.Lstat(host)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return devicesBelow(host, target, nil)
	}
	node, ok, err := deviceNode(host, target)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, invalid("not a device node")
	}
	return []specs.LinuxDevice{node}, nil
}

// HostDevices returns all device nodes in /dev for a privileged container, except those that every
// container has of its own.
func HostDevices() ([]specs.LinuxDevice, error) {
	return devicesBelow("/dev", "/dev", []string{"/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/console"})
}

// devicesBelow returns the device nodes below host, with paths below target. It skips entries that
// disappear meanwhile.
func devicesBelow(host, target string, skip []string) ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	err := filepath.WalkDir(host, func(p string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case slices.Contains(skip, p) && e.IsDir():
			return filepath.SkipDir
		case slices.Contains(skip, p) || e.Type()&fs.ModeDevice == 0:
			return nil
		}
		node, ok, err := deviceNode(p, filepath.Join(target, strings.TrimPrefix(p, host)))
		if ok && err == nil {
			out = append(out, node)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return out, err
}

// deviceNode describes the device node at host; ok is false for other files.
func deviceNode(host, target string) (node specs.LinuxDevice, ok bool, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(host, &st); err != nil {
		return specs.LinuxDevice{}, false, &fs.PathError{Op: "lstat", Path: host, Err: err}
	}
	kind := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFBLK:
		kind = "b"
	default:
		return specs.LinuxDevice{}, false, nil
	}
	mode := os.FileMode(st.Mode & 0o7777)
	return specs.LinuxDevice{
		Path: filepath.Clean(target), Type: kind, FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
		Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
	}, true, nil
}

// ReadSeccomp returns the content of the Localhost seccomp profile that the security context
// requests. It returns nil if there is none or the container is privileged, since privileged
// containers have no profile. Profiles of more than 4 MiB are ErrInvalidArgument.
func ReadSeccomp(sc *runtimeapi.LinuxContainerSecurityContext) ([]byte, error) {
	path, err := spec.SeccompFile(sc)
	if err != nil || path == "" {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open seccomp profile: %w", absent(err))
	}
	defer f.Close()
	return readBounded(f, maxSeccompProfile)
}

// readBounded reads a regular file of at most limit bytes.
func readBounded(f *os.File, limit int64) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, invalid("%s is not a regular file", f.Name())
	}
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(text)) > limit {
		return nil, invalid("%s is larger than %d bytes", f.Name(), limit)
	}
	return text, nil
}
