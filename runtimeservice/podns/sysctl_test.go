package podns

import (
	"errors"
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
