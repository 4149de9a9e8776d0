package runtimeservice

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/runtimeservice/cgroup"
)

// diskReading is what a container's writable layer uses of its file system.
type diskReading struct {
	filesystem filesystem
	used       uint64 // bytes
	at         time.Time
}

// filesystem is the one that the writable layers lie on.
type filesystem struct {
	device                    string
	bytes, inodes, inodesFree uint64
}

// readFilesystem measures the file system that dir lies on.
func readFilesystem(dir string) (filesystem, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return filesystem{}, fmt.Errorf("measure file system of %s: %w", dir, err)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err != nil {
		return filesystem{}, fmt.Errorf("find file system of %s: %w", dir, err)
	}
	var mount mountinfo.Info
	for _, m := range mounts {
		// Of mounts over each other the last one counts.
		if len(m.Mountpoint) >= len(mount.Mountpoint) {
			mount = *m
		}
	}
	return filesystem{
		device: mount.Source, bytes: st.Blocks * uint64(st.Bsize), inodes: st.Files, inodesFree: st.Ffree,
	}, nil
}

func diskFamilies() []family {
	fs := func(f func(*diskReading) sample) func(*reading) []sample {
		return func(r *reading) []sample {
			if r.disk == nil {
				return nil
			}
			v := f(r.disk)
			v.labels = []string{r.disk.filesystem.device}
			return []sample{v}
		}
	}
	io := func(f func(cgroup.IOStats) uint64) func(*reading) []sample {
		return func(r *reading) []sample {
			if r.stats == nil {
				return nil
			}
			var out []sample
			for _, d := range r.stats.IO {
				out = append(out, sample{value: f(d), labels: []string{deviceName(d)}})
			}
			return out
		}
	}
	const key = "device"
	return []family{
		gauge("container_fs_usage_bytes", "Size of the writable layer.",
			fs(func(d *diskReading) sample { return sample{value: d.used, at: d.at} }), key),
		gauge("container_fs_limit_bytes", "Size of the file system that the writable layer lies on.",
			fs(func(d *diskReading) sample { return sample{value: d.filesystem.bytes} }), key),
		gauge("container_fs_inodes_total", "Inodes of the file system that the writable layer lies on.",
			fs(func(d *diskReading) sample { return sample{value: d.filesystem.inodes} }), key),
		gauge("container_fs_inodes_free", "Free inodes of the file system that the writable layer lies on.",
			fs(func(d *diskReading) sample { return sample{value: d.filesystem.inodesFree} }), key),
		counter("container_fs_reads_bytes_total", "Bytes read from the device.",
			io(func(d cgroup.IOStats) uint64 { return d.ReadBytes }), key),
		counter("container_fs_reads_total", "Reads from the device.",
			io(func(d cgroup.IOStats) uint64 { return d.ReadOps }), key),
		counter("container_fs_writes_bytes_total", "Bytes written to the device.",
			io(func(d cgroup.IOStats) uint64 { return d.WriteBytes }), key),
		counter("container_fs_writes_total", "Writes to the device.",
			io(func(d cgroup.IOStats) uint64 { return d.WriteOps }), key),
		counter("container_blkio_device_usage_total", "Bytes read from, written to and discarded on the device.",
			deviceSamples, key, "major", "minor", "operation"),
	}
}

func deviceSamples(r *reading) []sample {
	if r.stats == nil {
		return nil
	}
	var out []sample
	for _, d := range r.stats.IO {
		name, major, minor := deviceName(d), strconv.FormatUint(d.Major, 10), strconv.FormatUint(d.Minor, 10)
		out = append(out,
			sample{value: d.ReadBytes, labels: []string{name, major, minor, "Read"}},
			sample{value: d.WriteBytes, labels: []string{name, major, minor, "Write"}},
			sample{value: d.DiscardBytes, labels: []string{name, major, minor, "Discard"}})
	}
	return out
}

// deviceName is the file of a block device, or its numbers if it has none any
// more, so that two devices never get the same labels.
func deviceName(d cgroup.IOStats) string {
	numbers := fmt.Sprintf("%d:%d", d.Major, d.Minor)
	link, err := os.Readlink(filepath.Join("/sys/dev/block", numbers))
	if err != nil {
		return numbers
	}
	return filepath.Join("/dev", filepath.Base(link))
}
