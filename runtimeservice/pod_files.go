package runtimeservice

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/micarun/mica/runtimeservice/spec"
)

// The files of a pod that its containers see under /etc and /dev.
const (
	hostnameFile = "hostname"
	hostsFile    = "hosts"
	resolvFile   = "resolv.conf"
	shmDir       = "shm"
	// filesDir is a file system of its own for the files under /etc.
	filesDir = "etc"
)

// filesRoom is how much containers can add to the pod's files under /etc, in
// bytes. The state directory is a tmpfs that systemd and others need; a resolver
// reads no more of such a file than some KiB.
const filesRoom = 1 << 20

// writePodFiles writes /etc/hostname, /etc/hosts and /etc/resolv.conf of the
// pod's containers and mounts their /dev/shm. Containers may write to them, as
// they may in Docker.
func (s *Service) writePodFiles(p *Pod, ips []string) error {
	if err := s.writeMissingFiles(p, ips); err != nil {
		return err
	}
	if p.hostIPC() {
		return nil
	}
	uid, gid := p.root()
	shm := filepath.Join(s.paths.PodState(p.ID()), shmDir)
	if err := os.Mkdir(shm, 0o1777); err != nil {
		return err
	}
	if err := unix.Mount("shm", shm, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=1777,size=%d,uid=%d,gid=%d", s.opts.ShmSize, uid, gid)); err != nil {
		return fmt.Errorf("mount %s: %w", shm, err)
	}
	return nil
}

// writeMissingFiles writes the files under /etc that do not exist.
func (s *Service) writeMissingFiles(p *Pod, ips []string) error {
	hostname, err := podHostname(p)
	if err != nil {
		return err
	}
	hosts, err := podHosts(p, hostname, ips)
	if err != nil {
		return err
	}
	resolv, err := podResolvConf(p)
	if err != nil {
		return err
	}
	return s.writeBounded(p, map[string]string{hostnameFile: hostname + "\n", hostsFile: hosts, resolvFile: resolv})
}

// writeBounded writes the files that are not there to a small tmpfs of the pod's own:
// what containers write there cannot fill the state directory.
func (s *Service) writeBounded(p *Pod, files map[string]string) error {
	dir := filepath.Join(s.paths.PodState(p.ID()), filesDir)
	if err := os.Mkdir(dir, privateMode); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if !isMountPoint(dir) {
		if err := mountBounded(dir, files); err != nil {
			return err
		}
	}
	uid, gid := p.root()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if exists(path) {
			continue
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
		if err := os.Lchown(path, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

// mountBounded mounts a tmpfs for the files, with room for what containers add.
func mountBounded(dir string, files map[string]string) error {
	size := filesRoom
	for _, content := range files {
		size += len(content)
	}
	// The host's own /etc/hosts may be large; the room comes on top of it.
	options := fmt.Sprintf("mode=0700,size=%d", size+len(files)*os.Getpagesize())
	if err := unix.Mount("files", dir, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return nil
}

func podHostname(p *Pod) (string, error) {
	if name := p.Config().GetHostname(); name != "" && !p.hostNetwork() {
		return name, nil
	}
	return os.Hostname()
}

// podHosts is the pod's own name beside the usual ones, or the node's file for
// a pod on the node's network.
func podHosts(p *Pod, hostname string, ips []string) (string, error) {
	if p.hostNetwork() {
		data, err := os.ReadFile("/etc/hosts")
		if errors.Is(err, os.ErrNotExist) {
			return "", nil
		}
		return string(data), err
	}
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, ip := range ips {
		fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
	}
	return b.String(), nil
}

// podResolvConf is the pod's DNS configuration, or the node's where the pod
// has none.
func podResolvConf(p *Pod) (string, error) {
	dns := p.Config().GetDnsConfig()
	if dns == nil {
		data, err := os.ReadFile("/etc/resolv.conf")
		if errors.Is(err, os.ErrNotExist) {
			return "", nil
		}
		return string(data), err
	}
	var b strings.Builder
	if len(dns.GetSearches()) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.GetSearches(), " "))
	}
	for _, server := range dns.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(dns.GetOptions()) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.GetOptions(), " "))
	}
	return b.String(), nil
}

// podMounts returns the mounts of the pod's files and shared memory in a container.
func (s *Service) podMounts(p *Pod, readonlyRootfs bool) []spec.Mount {
	dir := s.paths.PodState(p.ID())
	files := filepath.Join(dir, filesDir)
	if !exists(files) {
		files = dir // of a pod that an older build has made
	}
	options := []string{"nosuid", "noexec", "nodev"}
	var mounts []spec.Mount
	for _, name := range []string{hostnameFile, hostsFile, resolvFile} {
		mounts = append(mounts, spec.Mount{
			Source: filepath.Join(files, name), Destination: "/etc/" + name, ReadOnly: readonlyRootfs, Relabel: true, Options: options,
		})
	}
	shm := spec.Mount{Source: filepath.Join(dir, shmDir), Destination: "/dev/shm", Relabel: true, Options: options}
	if p.hostIPC() {
		shm = spec.Mount{Source: "/dev/shm", Destination: "/dev/shm"}
	}
	return append(mounts, shm)
}
