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
)

// writePodFiles writes /etc/hostname, /etc/hosts and /etc/resolv.conf of the
// pod's containers and mounts their /dev/shm. Containers may write to them, as
// they may in Docker.
func (s *Service) writePodFiles(p *Pod, ips []string) error {
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
	dir := s.podStateDir(p.ID)
	uid, gid := p.root()
	for name, content := range map[string]string{hostnameFile: hostname + "\n", hostsFile: hosts, resolvFile: resolv} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
		if err := os.Lchown(path, uid, gid); err != nil {
			return err
		}
	}
	if p.hostIPC() {
		return nil
	}
	shm := filepath.Join(dir, shmDir)
	if err := os.Mkdir(shm, 0o1777); err != nil {
		return err
	}
	if err := unix.Mount("shm", shm, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=1777,size=%d,uid=%d,gid=%d", s.opts.ShmSize, uid, gid)); err != nil {
		return fmt.Errorf("mount %s: %w", shm, err)
	}
	return nil
}

func podHostname(p *Pod) (string, error) {
	if name := p.config().GetHostname(); name != "" && !p.hostNetwork() {
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
	dns := p.config().GetDnsConfig()
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

// podMounts are the mounts that a pod's files and shared memory become in each
// of its containers.
func (s *Service) podMounts(p *Pod, readonlyRootfs bool) []spec.Mount {
	dir := s.podStateDir(p.ID)
	mounts := []spec.Mount{
		{Source: filepath.Join(dir, hostnameFile), Destination: "/etc/hostname", ReadOnly: readonlyRootfs, Relabel: true},
		{Source: filepath.Join(dir, hostsFile), Destination: "/etc/hosts", ReadOnly: readonlyRootfs, Relabel: true},
		{Source: filepath.Join(dir, resolvFile), Destination: "/etc/resolv.conf", ReadOnly: readonlyRootfs, Relabel: true},
	}
	shm := spec.Mount{Source: filepath.Join(dir, shmDir), Destination: "/dev/shm", Relabel: true, Options: []string{"nosuid", "noexec", "nodev"}}
	if p.hostIPC() {
		shm = spec.Mount{Source: "/dev/shm", Destination: "/dev/shm"}
	}
	return append(mounts, shm)
}
