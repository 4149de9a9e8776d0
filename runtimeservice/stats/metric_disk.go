package stats

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/mounts"
	"github.com/micarun/mica/runtimeservice/cgroup"
)

// Disk is a container's writable layer and its file system.
type Disk struct {
	Filesystem Filesystem
	Layer      Layer
}

// Filesystem is a reading of a file system, from [ReadFilesystem].
type Filesystem struct {
	device                    string
	bytes, inodes, inodesFree uint64
}

// ReadFilesystem measures the file system that contains dir. It may be called concurrently.
func ReadFilesystem(dir string) (Filesystem, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Filesystem{}, fmt.Errorf("measure file system of %s: %w", dir, err)
	}
	table, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err != nil {
		return Filesystem{}, fmt.Errorf("find file system of %s: %w", dir, err)
	}
	fs := Filesystem{bytes: st.Blocks * uint64(st.Bsize), inodes: st.Files, inodesFree: st.Ffree}
	if m := mounts.Containing(table, dir); m != nil {
		fs.device = m.Source
	}
	return fs, nil
}

func diskFamilies() []family {
	fs := func(f func(*Disk) sample) func(*Reading) []sample {
		return func(r *Reading) []sample {
			if r.Disk == nil {
				return nil
			}
			v := f(r.Disk)
			v.labels = []string{r.Disk.Filesystem.device}
			return []sample{v}
		}
	}
	io := func(f func(cgroup.IOStats) uint64) func(*Reading) []sample {
		return func(r *Reading) []sample {
			if r.Stats == nil {
				return nil
			}
			var out []sample
			for _, d := range r.Stats.IO {
				out = append(out, sample{value: f(d), labels: []string{deviceName(d)}})
			}
			return out
		}
	}
	const key = "device"
	return []family{
		gauge("container_fs_usage_bytes", "Size of the writable layer.",
			fs(func(d *Disk) sample { return sample{value: d.Layer.usage.Bytes, at: d.Layer.at} }), key),
		gauge("container_fs_limit_bytes", "Size of the file system that contains the writable layer.",
			fs(func(d *Disk) sample { return sample{value: d.Filesystem.bytes} }), key),
		gauge("container_fs_inodes_total", "Inodes of the file system that contains the writable layer.",
			fs(func(d *Disk) sample { return sample{value: d.Filesystem.inodes} }), key),
		gauge("container_fs_inodes_free", "Free inodes of the file system that contains the writable layer.",
			fs(func(d *Disk) sample { return sample{value: d.Filesystem.inodesFree} }), key),
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

func deviceSamples(r *Reading) []sample {
	if r.Stats == nil {
		return nil
	}
	var out []sample
	for _, d := range r.Stats.IO {
		name, major, minor := deviceName(d), strconv.FormatUint(d.Major, 10), strconv.FormatUint(d.Minor, 10)
		out = append(out,
			sample{value: d.ReadBytes, labels: []string{name, major, minor, "Read"}},
			sample{value: d.WriteBytes, labels: []string{name, major, minor, "Write"}},
			sample{value: d.DiscardBytes, labels: []string{name, major, minor, "Discard"}})
	}
	return out
}

// deviceName returns the device file of a block device. It returns the numbers if the file is
// missing, so that two devices never have the same labels.
func deviceName(d cgroup.IOStats) string {
	numbers := fmt.Sprintf("%d:%d", d.Major, d.Minor)
	link, err := os.Readlink(filepath.Join("/sys/dev/block", numbers))
	if err != nil {
		return numbers
	}
	return filepath.Join("/dev", filepath.Base(link))
}
