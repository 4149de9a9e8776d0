package podns

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestCheckSysctls(t *testing.T) {
	all := Args{Net: true, IPC: true, UTS: true}
	for _, test := range []struct {
		name string
		args Args
		want string // "" allowed, else part of the error
	}{
		{"net.ipv4.ip_forward", all, ""},
		{"net/ipv4/ip_forward", all, ""},
		{"net.ipv4.conf.eth0/100.forwarding", all, ""},
		{"kernel.shmmax", all, ""},
		{"kernel.shm_rmid_forced", all, ""},
		{"kernel.msgmnb", all, ""},
		{"kernel.sem", all, ""},
		{"fs.mqueue.msg_max", all, ""},
		{"kernel.domainname", all, ""},
		{"net.ipv4.ip_forward", Args{IPC: true}, "needs a net namespace"},
		{"kernel.shmmax", Args{Net: true}, "needs a ipc namespace"},
		{"kernel.domainname", Args{Net: true}, "needs a uts namespace"},
		{"kernel.hostname", all, "belongs to no namespace"},
		{"kernel.semaphore", all, "belongs to no namespace"},
		{"vm.swappiness", all, "belongs to no namespace"},
		{"fs.file-max", all, "belongs to no namespace"},
		{"fs.mqueue", all, "belongs to no namespace"},
		{"net", all, "belongs to no namespace"},
		{"", all, "sysctl name"},
		{"net/../kernel/core_pattern", all, "sysctl name"},
		{"net...kernel.core_pattern", all, "sysctl name"},
		{"net.//.kernel.core_pattern", all, "sysctl name"},
		{"/net/ipv4/ip_forward", all, "sysctl name"},
		{"net/ipv4/", all, "sysctl name"},
		{"net/a\x00b", all, "sysctl name"},
	} {
		test.args.Sysctls = map[string]string{test.name: "1"}
		err := CheckSysctls(test.args)
		if test.want == "" {
			if err != nil {
				t.Errorf("%q: %v", test.name, err)
			}
			continue
		}
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: %v, want ErrInvalidArgument with %q", test.name, err, test.want)
		}
	}
}

func FuzzSysctlPath(f *testing.F) {
	for _, seed := range []string{"net.ipv4.ip_forward", "net/../kernel", "net.//.x", "kernel.sem", "net.ipv4.conf.eth0/1.x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		path, err := sysctlPath(name)
		if err != nil {
			return
		}
		for part := range strings.SplitSeq(path, "/") {
			if part == "" || part == "." || part == ".." {
				t.Errorf("%q becomes %q", name, path)
			}
		}
	})
}

func TestSysctlPathOfInterfaces(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.conf.eth0.arp_ignore":            "net/ipv4/conf/eth0/arp_ignore",
		"net.ipv4.conf.eth0/100.arp_ignore":        "net/ipv4/conf/eth0.100/arp_ignore",
		"net.ipv4.conf.eth0.100.arp_ignore":        "net/ipv4/conf/eth0.100/arp_ignore",
		"net/ipv4/conf/eth0.100/arp_ignore":        "net/ipv4/conf/eth0.100/arp_ignore",
		"net/ipv6/neigh/eth0.100.200/gc_stale":     "net/ipv6/neigh/eth0.100.200/gc_stale",
		"net.ipv6.neigh.eth0.100.200.gc_stale":     "net/ipv6/neigh/eth0.100.200/gc_stale",
		"net.netfilter.nf_conntrack_tcp_timeout_x": "net/netfilter/nf_conntrack_tcp_timeout_x",
		"net.ipv4.conf.eth0":                       "net/ipv4/conf/eth0",
	} {
		if got, err := sysctlPath(name); err != nil || got != want {
			t.Errorf("sysctlPath(%q) = %q, %v; want %q", name, got, err, want)
		}
	}
	for path, want := range map[string]bool{
		"net/ipv4/conf/eth0/arp_ignore": true, "net/ipv6/neigh/eth0.1/x": true, "net/mpls/conf/eth0/input": true,
		"net/ipv4/conf/all/forwarding": false, "net/ipv4/conf/default/forwarding": false, "net/ipv4/conf/lo/forwarding": false,
		"net/ipv4/ip_forward": false, "net/ipv4/route/eth0/x": false,
	} {
		if got := (sysctl{path: path}).ofInterface(); got != want {
			t.Errorf("%s is of an interface: %t", path, got)
		}
	}
}

// A sysctl's interface is added after the namespace is made.
func TestInterfaceSysctlsAreSetLater(t *testing.T) {
	needRoot(t)
	args := Args{Dir: podDir(t), Net: true, Sysctls: map[string]string{
		"net.ipv4.ip_forward": " 1\n", "net.ipv4.conf.br0.7.arp_ignore": "2\n", "net/ipv6/neigh/br0.7/gc_stale_time": "77",
	}}
	if err := Pin(t.Context(), args); err != nil {
		t.Fatal(err)
	}
	if err := SetInterfaceSysctls(args); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "net/ipv4/conf/br0.7/arp_ignore") {
		t.Errorf("before the interface is there: %v", err)
	}
	inside := func(script string) string {
		out, err := exec.Command("nsenter", "--net="+filepath.Join(args.Dir, Net), "sh", "-c", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	inside("ip link add br0.7 type bridge")
	if err := SetInterfaceSysctls(args); err != nil {
		t.Fatal(err)
	}
	if got := inside("cd /proc/sys/net; cat ipv4/ip_forward ipv4/conf/br0.7/arp_ignore ipv6/neigh/br0.7/gc_stale_time"); got != "1\n2\n77\n" {
		t.Errorf("inside are %q", got)
	}
	args.Sysctls["net.ipv4.conf.br0/7.no_such_thing"] = "1"
	if err := SetInterfaceSysctls(args); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("unknown sysctl: %v", err)
	}
}
