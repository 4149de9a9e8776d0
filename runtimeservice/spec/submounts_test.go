package spec

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Mounts below a source come after its mount and before mounts that cover them. They have its
// recursive options.
func TestSubmounts(t *testing.T) {
	in := request()
	in.Config.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/v/other/deep", HostPath: "/deep"},
		{
			ContainerPath: "/v/", HostPath: "/a", Readonly: true, RecursiveReadOnly: true,
			MountOptions: []string{"noexec", "rnosuid", "relatime"},
		},
		{ContainerPath: "/v/taken", HostPath: "/b"},
		{ContainerPath: "/ro", HostPath: "/a", Readonly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
	}
	in.Features = listed("rro", "noexec", "rnosuid", "relatime")
	in.Submounts = []Submount{
		{1, "sub", "/s/1"},
		{1, "sub/sub", "/s/2"},
		{1, "taken", "/s/3"},
		{1, "taken/below", "/s/4"},
		{1, "takenover", "/s/5"},
		{3, "sub", "/s/6"},
	}
	in.Mounts = []Mount{{Source: "/hosts", Destination: "/ro/sub"}, {Source: "/hosts", Destination: "/etc/hosts"}}
	s, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	var got []specs.Mount
	for _, m := range s.Mounts {
		if m.Type == "bind" {
			got = append(got, m)
		}
	}
	recursive := []string{"rbind", "rprivate", "rro", "rnosuid"}
	want := []specs.Mount{
		{Destination: "/v", Type: "bind", Source: "/a", Options: []string{"rbind", "rprivate", "rro", "noexec", "rnosuid", "relatime"}},
		{Destination: "/ro", Type: "bind", Source: "/a", Options: []string{"rbind", "rslave", "ro"}},
		{Destination: "/v/taken", Type: "bind", Source: "/b", Options: []string{"rbind", "rprivate", "rw"}},
		{Destination: "/ro/sub", Type: "bind", Source: "/hosts", Options: []string{"rbind", "rprivate", "rw"}},
		{Destination: "/etc/hosts", Type: "bind", Source: "/hosts", Options: []string{"rbind", "rprivate", "rw"}},
		{Destination: "/v/sub", Type: "bind", Source: "/s/1", Options: recursive},
		{Destination: "/v/takenover", Type: "bind", Source: "/s/5", Options: recursive},
		{Destination: "/v/other/deep", Type: "bind", Source: "/deep", Options: []string{"rbind", "rprivate", "rw"}},
		{Destination: "/v/sub/sub", Type: "bind", Source: "/s/2", Options: recursive},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
