package spec

import (
	"slices"
	"testing"

	"github.com/opencontainers/selinux/go-selinux"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestSELinuxOptions(t *testing.T) {
	got := selinuxOptions(&runtimeapi.SELinuxOption{User: "u", Type: "t", Level: "s0:c1,c2"})
	if !slices.Equal(got, []string{"user:u", "type:t", "level:s0:c1,c2"}) {
		t.Errorf("selinuxOptions = %q", got)
	}
	if got := selinuxOptions(nil); len(got) != 0 {
		t.Errorf("selinuxOptions(nil) = %q", got)
	}
}

// TestSELinuxLabels holds that a node without SELinux gives no labels and one
// with it a pair of them.
func TestSELinuxLabels(t *testing.T) {
	process, mount, err := SELinuxLabels(nil, &runtimeapi.SELinuxOption{Level: "s0:c1,c2"})
	if err != nil {
		t.Fatal(err)
	}
	defer ReleaseSELinux(process)
	if on := selinux.GetEnabled(); (process != "") != on || (mount != "") != on {
		t.Errorf("SELinux %v: labels %q, %q", on, process, mount)
	}
}

func TestRelabelSources(t *testing.T) {
	in := request()
	in.Config.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/a", HostPath: "/link", SelinuxRelabel: true}, {ContainerPath: "/b", HostPath: "/b"},
	}
	in.Mounts = []Mount{{Source: "/run/hosts", Relabel: true}, {Source: "/dev/shm"}}
	if got := relabelSources(in); !slices.Equal(got, []string{"/link", "/run/hosts"}) {
		t.Errorf("relabelSources = %q", got)
	}
	in.MountSources = []string{"/target", "/b"}
	if got := relabelSources(in); !slices.Equal(got, []string{"/target", "/run/hosts"}) {
		t.Errorf("relabelSources = %q", got)
	}
	if err := Relabel(in); err != nil {
		t.Errorf("Relabel without a label = %v", err)
	}
}
