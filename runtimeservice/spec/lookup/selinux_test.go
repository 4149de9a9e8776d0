package lookup

import (
	"slices"
	"testing"

	"github.com/opencontainers/selinux/go-selinux"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/spec"
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

func TestShareLevel(t *testing.T) {
	const podLabel = "system_u:system_r:container_t:s0:c1,c2"
	podOptions := &runtimeapi.SELinuxOption{Type: "pod_t"}
	for _, tc := range []struct {
		container *runtimeapi.SELinuxOption
		label     string
		want      []string
	}{
		{nil, podLabel, []string{"type:pod_t", "level:s0:c1,c2"}},
		{&runtimeapi.SELinuxOption{User: "u"}, podLabel, []string{"user:u", "level:s0:c1,c2"}},
		{&runtimeapi.SELinuxOption{Level: "s0:c8,c9"}, podLabel, []string{"level:s0:c8,c9"}},
		{nil, "", []string{"type:pod_t"}},
		{nil, "u:r:t", []string{"type:pod_t"}},
	} {
		if got := selinuxOptions(ShareLevel(tc.container, podOptions, tc.label)); !slices.Equal(got, tc.want) {
			t.Errorf("ShareLevel(%v, %q) = %q, want %q", tc.container, tc.label, got, tc.want)
		}
	}
	if podOptions.Level != "" {
		t.Error("ShareLevel changed the pod's options")
	}
}

// TestReserveSELinux holds that a level stays reserved until it is released, also if several pods
// share it. The library keeps the list on every node.
func TestReserveSELinux(t *testing.T) {
	const podLabel, containerLabel = "u:r:pod_t:s0:c1001,c1002", "u:r:other_t:s0:c1001,c1002"
	for _, label := range []string{podLabel, containerLabel, podLabel, "", "no:level"} {
		if err := ReserveSELinux(label); err != nil {
			t.Error(err)
		}
	}
	if err := selinux.CheckLabel(podLabel); err == nil {
		t.Error("a reserved level is free")
	}
	ReleaseSELinux(podLabel)
	if err := selinux.CheckLabel(containerLabel); err != nil {
		t.Errorf("a released level is not free: %v", err)
	}
}

// TestSELinuxLabels holds that a node without SELinux gives no labels and a node with SELinux gives
// both.
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
	in := spec.ContainerInput{Config: &runtimeapi.ContainerConfig{}}
	in.Config.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/a", HostPath: "/link", SelinuxRelabel: true}, {ContainerPath: "/b", HostPath: "/b"},
	}
	in.Mounts = []spec.Mount{{Source: "/run/hosts", Relabel: true}, {Source: "/dev/shm"}}
	if got := relabelSources(in); !slices.Equal(got, []string{"/link", "/run/hosts"}) {
		t.Errorf("relabelSources = %q", got)
	}
	in.MountSources = []string{"/target", "/b"}
	in.Config.Mounts = append(in.Config.Mounts, &runtimeapi.Mount{ContainerPath: "/i", Image: &runtimeapi.ImageSpec{Image: "i"}, SelinuxRelabel: true})
	in.MountSources = append(in.MountSources, "/image")
	if got := relabelSources(in); !slices.Equal(got, []string{"/target", "/run/hosts"}) {
		t.Errorf("relabelSources = %q", got)
	}
	if err := Relabel(in); err != nil {
		t.Errorf("Relabel without a label = %v", err)
	}
}
